"""Packed contexts as the keys and values that go into a worker's pages: decoded once a memory, turned to where they stand.

vLLM numbers a prompt's columns 0, 1, ..., S - 1 and the question from S. Attention sees differences of positions alone, so a
column that stands at position j gets the angle of j - next_position + S, in float32; negative angles are as good as others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmt_core.errors import MemoryFormatError
from cmt_core.memory.code_reader import StoredCode
from cmt_core.memory.decoded import DecodedMemories
from cmt_core.memory.packed_context import PackedContext
from cmt_core.vllm_engine.rotary import Rotary

__all__ = ["DEFAULT_DECODED_BYTES", "ContextLoader", "PlacedColumns"]

DEFAULT_DECODED_BYTES = 256 * 2**20
"""Of memories read lately that are kept as keys and values."""


@dataclass(frozen=True, slots=True)
class PlacedColumns:
    """Keys, turned, and values (S, L, H, d) of some of a context's columns."""

    keys: Tensor
    values: Tensor


class ContextLoader:
    """Makes columns of one checkpoint's contexts for the LLM with configuration `llm`; not thread-safe."""

    def __init__(
        self,
        stored: StoredCode,
        llm: Any,
        device: torch.device,
        dtype: torch.dtype,
        decoded_bytes: int = DEFAULT_DECODED_BYTES,
    ) -> None:
        """Raises ValueError for an LLM of another shape than the checkpoint's, or whose rotary can't be computed here."""
        self.shape, self._config = stored.shape, stored.config
        own = (llm.num_hidden_layers, llm.num_key_value_heads, _head_dim(llm))
        if own != (self.shape.layers, self.shape.heads, self.shape.head_dim):
            ours = (self.shape.layers, self.shape.heads, self.shape.head_dim)
            raise ValueError(f"the checkpoint is of an LLM with layers, heads, head_dim {ours}, and this LLM has {own}")
        self._reader = stored.reader(device, dtype)
        self._prefixes = {
            "reading": stored.reading_prefix.to(device, dtype),
            "encoding": stored.encoding_prefix.to(device, dtype),
        }
        self._rotary = Rotary(llm, self.shape.layers, self.shape.head_dim, device)
        self._decoded = DecodedMemories(decoded_bytes, self._config.window_tokens)
        self._device = device

    @classmethod
    def of(cls, folder: Path, llm: Any, device: torch.device, dtype: torch.dtype, **options: Any) -> ContextLoader:
        """A loader of the checkpoint in `folder`; raises CheckpointError, too. `options`: bits_per_token, decoded_bytes."""
        stored = StoredCode.load(folder, options.pop("bits_per_token", None))
        return cls(stored, llm, device, dtype, **options)

    @torch.inference_mode()
    def columns(self, context: PackedContext, first: int = 0) -> PlacedColumns:
        """The columns of `context` from number `first` on. Raises MemoryFormatError for foreign memories or runs beyond them."""
        prefix = self._prefixes.get(context.prefix)
        if prefix is not None and len(prefix) != context.prefix_tokens:
            raise MemoryFormatError(f"a prefix of {context.prefix_tokens} tokens is not of this checkpoint")
        rows = self._rows(context)
        parts = [] if prefix is None else [prefix]
        for run in context.runs:
            whole = rows[context.memories[run.memory]]
            if run.stop > len(whole):
                raise MemoryFormatError(f"a run ends at token {run.stop} of a memory of {len(whole)} tokens")
            parts.append(whole[run.start : run.stop])
        shape = self.shape
        x = torch.cat(parts)[first:].view(-1, shape.layers, 2, shape.heads, shape.head_dim)
        self._decoded.keep(rows)
        places = torch.tensor(context.positions()[first:], device=self._device)
        angles = places - context.next_position + context.columns
        return PlacedColumns(self._rotary.turned(x[:, :, 0], angles), x[:, :, 1])

    def warm_up(self) -> None:
        """Decodes and turns what no question asks for, since the first time is slow."""
        rows = self._reader.read([self._reader.blank(min(64, self._config.window_tokens))])[0]
        x = rows.view(len(rows), self.shape.layers, 2, self.shape.heads, self.shape.head_dim)
        self._rotary.turned(x[:, :, 0], torch.arange(len(rows), device=self._device))

    def _rows(self, context: PackedContext) -> dict[bytes, Tensor]:
        """Keys and values (t, X) of every memory, decoded unless they are kept."""
        found = {memory: self._decoded[memory] for memory in context.memories if memory in self._decoded}
        if fresh := [memory for memory in dict.fromkeys(context.memories) if memory not in found]:
            found.update(zip(fresh, self._reader.read(fresh), strict=True))
        return found


def _head_dim(llm: Any) -> int:
    return int(getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads)
