"""The paper's trained parts as one module: Θ `soft_tokens`, ψ, π and self-matching, as the configuration names them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cmt_core.config import MemoryConfig
from cmt_core.errors import ConfigError, MemoryFormatError
from cmt_core.llm.backbone import Backbone, KVShape
from cmt_core.memory.soft.alignment_maps import LinearMaps, LowRankMaps
from cmt_core.memory.soft.matching import Matching
from cmt_core.memory.soft.single_context import SingleContext
from cmt_core.memory.soft.soft_tokens import SoftTokens, surprisal

__all__ = ["SoftMemory"]


class SoftMemory(nn.Module):
    """All that `soft_tokens` trains besides the prefixes; raises ConfigError for another method."""

    def __init__(self, config: MemoryConfig, shape: KVShape) -> None:
        super().__init__()
        if config.method != "soft_tokens":
            raise ConfigError(f"method {config.method!r} has no soft tokens")
        D = config.memory_width
        self.config = config
        self.source_layer = max(1, round(config.source_depth * shape.layers))  # whose input Θ reads
        self.compressor = SoftTokens(D, config.memory_vectors, config.compressor_blocks, config.soft_start)
        self.alignment = (
            LowRankMaps(shape, D, config.alignment_rank) if config.alignment == "low_rank" else LinearMaps(shape, D)
        )
        single = config.aggregation == "single_context"
        self.context = SingleContext(D, config.context_vectors, config.memory_vectors) if single else None
        self.matching = Matching(D) if config.matching != "none" else None

    def compress(self, backbone: Backbone, ids: Tensor, mask: Tensor, source: Tensor, last: Tensor) -> Tensor:
        """Memory (B, m, D) of documents ids, mask (B, T), read with `Backbone.read_at_depth` of `source_layer`.

        source (B, T, D) are the hidden states that become the memory; the last ones (B, T, D) tell the salient tokens.
        """
        salient = self.config.soft_start == "salient"
        salience = surprisal(backbone, ids, last) if salient else None
        memory: Tensor = self.compressor(source, mask, salience)
        return memory

    def align(self, backbone: Backbone, memory: Tensor) -> Tensor:
        """Rows x (..., X) of memory vectors (..., D)."""
        rows: Tensor = self.alignment(backbone, memory)
        return rows

    def aggregate(self, question: Tensor, memories: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """ψ `single_context`: (B, c, D) and each document's share (B, k); see SingleContext."""
        assert self.context is not None, "stack has no aggregator"
        match = None if self.matching is None else self.matching.cosines(question, memories)
        context, shares = self.context(question, memories, present, match)
        return context, shares

    def pack(self, memory: Tensor) -> bytes:
        """One document's vectors (m, D) as float16 bytes."""
        return memory.detach().cpu().numpy().astype("<f2").tobytes()

    def unpack(self, memories: list[bytes], device: torch.device) -> Tensor:
        """Vectors (N, m, D) of packed memories. Raises MemoryFormatError for bytes of another size."""
        for memory in memories:
            if len(memory) != self.config.memory_bytes:
                raise MemoryFormatError(f"a memory of {len(memory)} bytes is not of this checkpoint")
        table = np.frombuffer(b"".join(memories), dtype="<f2").astype(np.float32)
        shape = (len(memories), self.config.memory_vectors, self.config.memory_width)
        return torch.from_numpy(table.reshape(shape)).to(device)
