"""A tiny deterministic model without an LLM: it writes texts as memories, reads them, and quotes a sentence.

For tests, volume runs, and for trying the system where no model can be had; a "memory" is the window's text, length first,
padded with zeros.
"""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmt_core.generation.query import AnswerStart, Query
from cmt_core.retrieval.late_interaction import DocumentKeys, QueryKeys
from cmt_core.text.normalisation import normalised
from cmt_core.text.windows import Window, split_document
from cmt_core.text.words import words
from services.settings import Settings

__all__ = ["LexicalBatch", "LexicalMemory", "LexicalModel", "load_lexical"]

_LENGTH = struct.Struct("<H")
_COMMON = frozenset(
    re.findall(r"\w+", "a an and are at by did do does for from how in is it of on the to was were what when who")
)


@dataclass(frozen=True, slots=True)
class LexicalMemory:
    """A text as a memory; tokens are words."""

    code: bytes
    n_tokens: int


class LexicalModel:
    """Keys are hashed words, memories are text, answers are the sentence with most words of the question."""

    default_top_k = 3
    min_score = 0.3
    answer_tokens = 32
    follows_instructions = False

    def __init__(self, d_key: int = 64, memory_bytes: int = 1024, model_id: str = "lexical-1") -> None:
        self.d_key = d_key
        self.memory_bytes = memory_bytes
        self.model_id = model_id

    def looked_at(self, k: int) -> int:
        """As many as are read."""
        return k

    def windows(self, title: str, text: str) -> list[Window]:
        """Windows of at most 120 words."""
        return split_document(title, text, 120, lambda part: len(part.split()))

    def compress(self, windows: Sequence[Window]) -> list[LexicalMemory]:
        """The windows' texts as memories."""
        texts = [normalised(window.text) for window in windows]
        return [LexicalMemory(self.pack(text), len(text.split())) for text in texts]

    def document_keys(self, windows: Sequence[Window]) -> DocumentKeys:
        """Keys of what is read of each window, zero for a text of common words alone, and no tokens."""
        return DocumentKeys(self.query_keys([window.reading for window in windows]).vectors, [b""] * len(windows))

    def pack(self, text: str) -> bytes:
        """The memory of a text, `memory_bytes` long; what does not fit is cut off."""
        kept = text.encode()[: self.memory_bytes - _LENGTH.size]
        return (_LENGTH.pack(len(kept)) + kept).ljust(self.memory_bytes, b"\0")

    def query_keys(self, questions: Sequence[str]) -> QueryKeys:
        """Unit-length counts of hashed words, and no tokens."""
        keys = np.zeros((len(questions), self.d_key), dtype=np.float32)
        for row, question in zip(keys, questions, strict=True):
            for word in _words(question):
                row[zlib.crc32(word.encode()) % self.d_key] += 1.0
        lengths = np.linalg.norm(keys, axis=1, keepdims=True)
        unit: npt.NDArray[np.float32] = keys / np.maximum(lengths, 1e-6)
        return QueryKeys(unit, [np.zeros((0, 0), dtype=np.float32)] * len(questions))

    def answer_batch(self) -> LexicalBatch:
        """A running batch that writes one word a step."""
        return LexicalBatch(self)

    def read(self, query: Query) -> list[str]:
        """The texts that a query gives to read; a memory of the wrong size is a ValueError."""
        texts = [self._unpack(memory) for memory in query.memories] if query.mode in ("memory", "hybrid") else []
        return [*texts, *map(normalised, query.passages)] if query.mode in ("rag", "hybrid") else texts

    def _unpack(self, memory: bytes) -> str:
        if len(memory) != self.memory_bytes:
            raise ValueError(f"a memory has {len(memory)} bytes, {self.memory_bytes} are expected")
        (size,) = _LENGTH.unpack_from(memory)
        return memory[_LENGTH.size : _LENGTH.size + size].decode(errors="ignore")


def load_lexical(settings: Settings) -> LexicalModel:
    """The model factory of this model, for ingest and for serving."""
    return LexicalModel()


def _words(text: str) -> set[str]:
    return {word.lower() for word in words(text)} - _COMMON


@dataclass(slots=True)
class _Row:
    """Words still to be written; `drawn` shuffles them instead, by the query's seed."""

    words: list[str]
    drawn: random.Random | None

    def next(self) -> str | None:
        if not self.words:
            return None
        return self.words.pop(self.drawn.randrange(len(self.words)) if self.drawn else 0)


class LexicalBatch:
    """Queries in progress; a token is a word, numbered as it first comes up."""

    def __init__(self, model: LexicalModel) -> None:
        self._model = model
        self._rows: dict[int, _Row] = {}
        self._numbers: dict[str, int] = {}
        self._next_row = 0

    def __len__(self) -> int:
        return len(self._rows)

    def prompt_tokens(self, query: Query) -> int:
        """Words of the question, of the conversation before it, and of texts to read."""
        turns = [text for turn in query.earlier for text in turn]
        return sum(len(text.split()) for text in [query.question, *turns, *query.passages])

    def join(self, queries: Sequence[Query]) -> list[AnswerStart]:
        """Reads what the queries give and writes each one's first word."""
        read = [self._model.read(query) for query in queries]
        return [self._start(query, texts) for query, texts in zip(queries, read, strict=True)]

    def step(self) -> dict[int, list[int | None]]:
        """The next word of every row, None at its end."""
        return {number: [self._number(row.next())] for number, row in self._rows.items()}

    def step_of(self, row: int) -> int | None:
        """The next word of one row, None at its end."""
        return self._number(self._rows[row].next())

    def leave(self, row: int) -> None:
        """Ends a row."""
        del self._rows[row]

    def text(self, ids: Sequence[int]) -> str:
        """The words with spaces between them."""
        written = list(self._numbers)
        return " ".join(written[number] for number in ids)

    def _start(self, query: Query, texts: Sequence[str]) -> AnswerStart:
        sampling = query.sampling
        row = _Row(_quote(query.question, texts), random.Random(sampling.seed) if sampling.temperature > 0 else None)
        number, self._next_row = self._next_row, self._next_row + 1
        wanted = _words(query.question)
        shares = [0.01 + len(wanted & _words(text)) for text in texts[: len(query.memories) or len(texts)]]
        weights = [share / sum(shares) for share in shares]
        best = max(range(len(shares)), key=shares.__getitem__, default=0)
        other = query.completed_by[best] if query.completed_by else None
        together = () if other is None else (other, best)
        started = AnswerStart(number, self.prompt_tokens(query), weights, [self._number(row.next())], together)
        self._rows[number] = row
        return started

    def _number(self, word: str | None) -> int | None:
        return None if word is None else self._numbers.setdefault(word, len(self._numbers))


def _quote(question: str, texts: Sequence[str]) -> list[str]:
    """The words of the sentence that shares most words with the question."""
    wanted = _words(question)
    scored = [(len(wanted & _words(s)), s) for text in texts for s in re.split(r"(?<=[.!?])\s+", text) if s]
    best = max(scored, key=lambda pair: pair[0], default=(0, ""))
    return (best[1] if best[0] else "I do not know.").split()
