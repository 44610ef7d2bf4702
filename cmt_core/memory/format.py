"""What stands in the bank: a window's packed memory, how Θ writes it, and how π gives its keys and values back.

A format knows one method's bytes. Placing them, and choosing among them, is the same for all (model.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.llm.backbone import Backbone
from cmt_core.memory.code_reader import CodeReader
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.rounding import Rounding
from cmt_core.memory.soft.soft_memory import SoftMemory

__all__ = ["KVCodeFormat", "Memory", "MemoryFormat", "SoftTokensFormat"]


@dataclass(frozen=True, slots=True)
class Memory:
    """A window's packed memory of `memory_bytes` bytes, and the tokens it holds."""

    code: bytes
    n_tokens: int


class MemoryFormat(Protocol):
    """One method's memories, written behind the encoding prefix."""

    def write(self, ids: Tensor, mask: Tensor, prefix: Tensor) -> list[Memory]:
        """Memories of windows ids, mask (B, T), read behind prefix (p, X)."""
        ...

    def read(self, memories: Sequence[bytes]) -> list[Tensor]:
        """Keys and values (t, X) of each memory, before they are placed; raises MemoryFormatError for foreign bytes."""
        ...


class KVCodeFormat:
    """A 2-byte token count, then the packed codes of its tokens."""

    def __init__(self, backbone: Backbone, code: KVCode, rounding: Rounding, config: MemoryConfig) -> None:
        self._backbone, self._config = backbone, config
        self.code, self.rounding = code, rounding.to(backbone.device)
        self._reader = CodeReader(code, rounding, config, backbone.device, backbone.dtype)

    def write(self, ids: Tensor, mask: Tensor, prefix: Tensor) -> list[Memory]:
        """See MemoryFormat."""
        return self.rounded(self.code.encode(self._backbone.read(ids, mask, prefix)), mask.sum(dim=1).tolist())

    def rounded(self, codes: Tensor, lengths: Sequence[int]) -> list[Memory]:
        """Memories of codes (B, T, C), of which the first `lengths` are tokens."""
        packed = self.rounding.pack(codes, lengths)
        return [self._memory(code, length) for code, length in zip(packed, lengths, strict=True)]

    def read(self, memories: Sequence[bytes]) -> list[Tensor]:
        """See MemoryFormat."""
        return self._reader.read(memories)

    def codes(self, memories: Sequence[bytes]) -> tuple[Tensor, list[int]]:
        """Codes (tokens, C) of all memories, one behind the other, and how many tokens each has."""
        return self._reader.codes(memories)

    def _memory(self, code: bytes, n_tokens: int) -> Memory:
        head = n_tokens.to_bytes(2, "little")
        return Memory((head + code).ljust(self._config.memory_bytes, b"\0"), n_tokens)


class SoftTokensFormat:
    """m vectors of the LLM's width in float16, whatever the window's length."""

    def __init__(self, backbone: Backbone, soft: SoftMemory) -> None:
        self._backbone, self._soft = backbone, soft

    def write(self, ids: Tensor, mask: Tensor, prefix: Tensor) -> list[Memory]:
        """See MemoryFormat."""
        _, source, last = self._backbone.read_at_depth(ids, mask, prefix, self._soft.source_layer)
        vectors = self._soft.compress(self._backbone, ids, mask, source, last)
        lengths = mask.sum(dim=1).tolist()
        return [Memory(self._soft.pack(row), length) for row, length in zip(vectors, lengths, strict=True)]

    def read(self, memories: Sequence[bytes]) -> list[Tensor]:
        """See MemoryFormat."""
        return list(self._soft.align(self._backbone, self._soft.unpack(list(memories), self._backbone.device)))
