"""A tiny deterministic model without an LLM: it writes texts as memories, reads them, and quotes a sentence.

For tests, volume runs, and for trying the system where no model can be had; a "memory" is the window's text, length first,
padded with zeros.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from cmt_core.windows import Window, split_document
from services.settings import Settings

__all__ = ["LexicalAnswer", "LexicalMemory", "LexicalModel", "load_lexical"]

_LENGTH = struct.Struct("<H")
_COMMON = frozenset(
    re.findall(r"\w+", "a an and are at by did do does for from how in is it of on the to was were what when who")
)


@dataclass(frozen=True, slots=True)
class LexicalAnswer:
    """An answer of the lexical model; tokens are words."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"] = "stop"
    weights: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LexicalMemory:
    """A text as a memory; tokens are words."""

    code: bytes
    n_tokens: int


class LexicalModel:
    """Keys are hashed words, memories are text, answers are the sentence with most words of the question."""

    default_top_k = 3

    def __init__(self, d_key: int = 64, memory_bytes: int = 1024, model_id: str = "lexical-1") -> None:
        self.d_key = d_key
        self.memory_bytes = memory_bytes
        self.model_id = model_id

    def windows(self, title: str, text: str) -> list[Window]:
        """Windows of at most 120 words."""
        return split_document(title, text, 120, lambda part: len(part.split()))

    def compress(self, windows: Sequence[Window]) -> list[LexicalMemory]:
        """The windows' texts as memories."""
        return [LexicalMemory(self.pack(window.text), len(window.text.split())) for window in windows]

    def document_keys(self, windows: Sequence[Window]) -> npt.NDArray[np.float32]:
        """Keys of what is read of each window, (N, d_key); zero for a text of common words alone."""
        return self.query_keys([window.reading for window in windows])

    def pack(self, text: str) -> bytes:
        """The memory of a text, `memory_bytes` long; what does not fit is cut off."""
        kept = text.encode()[: self.memory_bytes - _LENGTH.size]
        return (_LENGTH.pack(len(kept)) + kept).ljust(self.memory_bytes, b"\0")

    def query_keys(self, questions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-length counts of hashed words, (B, d_key)."""
        keys = np.zeros((len(questions), self.d_key), dtype=np.float32)
        for row, question in zip(keys, questions, strict=True):
            for word in _words(question):
                row[zlib.crc32(word.encode()) % self.d_key] += 1.0
        lengths = np.linalg.norm(keys, axis=1, keepdims=True)
        unit: npt.NDArray[np.float32] = keys / np.maximum(lengths, 1e-6)
        return unit

    def answer(
        self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], *, max_new_tokens: int
    ) -> list[LexicalAnswer]:
        """Reads the packed texts; a memory of the wrong size is a ValueError."""
        texts = [[self._unpack(memory) for memory in own] for own in memories]
        return [_quote(q, own, max_new_tokens, 0) for q, own in zip(questions, texts, strict=True)]

    def answer_rag(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> list[LexicalAnswer]:
        """Reads the passages, whose words count as prompt tokens."""
        sizes = [sum(len(text.split()) for text in own) for own in passages]
        return [_quote(q, own, max_new_tokens, n) for q, own, n in zip(questions, passages, sizes, strict=True)]

    def answer_closed(self, questions: Sequence[str], *, max_new_tokens: int) -> list[LexicalAnswer]:
        """It knows nothing by itself, and says so."""
        return [_quote(question, [], max_new_tokens, 0) for question in questions]

    def _unpack(self, memory: bytes) -> str:
        if len(memory) != self.memory_bytes:
            raise ValueError(f"a memory has {len(memory)} bytes, {self.memory_bytes} are expected")
        (size,) = _LENGTH.unpack_from(memory)
        return memory[_LENGTH.size : _LENGTH.size + size].decode(errors="ignore")


def load_lexical(settings: Settings) -> LexicalModel:
    """The model factory of this model, for ingest and for serving."""
    return LexicalModel()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - _COMMON


def _quote(question: str, texts: Sequence[str], limit: int, extra_tokens: int) -> LexicalAnswer:
    wanted = _words(question)
    scored = [(len(wanted & _words(s)), s) for text in texts for s in re.split(r"(?<=[.!?])\s+", text) if s]
    best = max(scored, key=lambda pair: pair[0], default=(0, ""))
    words = (best[1] if best[0] else "I do not know.").split()
    shares = [0.01 + len(wanted & _words(text)) for text in texts]
    return LexicalAnswer(
        text=" ".join(words[:limit]),
        prompt_tokens=len(question.split()) + extra_tokens,
        completion_tokens=min(len(words), limit),
        finish_reason="length" if len(words) > limit else "stop",
        weights=[share / sum(shares) for share in shares],
    )
