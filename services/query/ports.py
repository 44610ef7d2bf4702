"""What the query service needs from the model and from the bank, as Protocols that tests can satisfy too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from services.settings import Settings

__all__ = [
    "Answer",
    "AnsweringModel",
    "BankFactory",
    "BankStats",
    "DocumentInfo",
    "Hit",
    "MemoryReader",
    "ModelFactory",
]


class Answer(Protocol):
    """One generated answer; `weights` has one entry per memory and sums to 1."""

    @property
    def text(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def finish_reason(self) -> Literal["stop", "length"]: ...
    @property
    def weights(self) -> Sequence[float]: ...


class AnsweringModel(Protocol):
    """The frozen LLM with its retriever and memory parts (`cmt_core.model.CMT`)."""

    @property
    def model_id(self) -> str: ...
    @property
    def d_key(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def default_top_k(self) -> int: ...

    def query_keys(self, questions: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Search keys of questions, (B, d_key)."""
        ...

    def answer(
        self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], *, max_new_tokens: int
    ) -> Sequence[Answer]:
        """Answers B questions, each from its own k packed memories."""
        ...

    def answer_rag(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> Sequence[Answer]:
        """Answers B questions, each with its own k passages as text in the prompt."""
        ...

    def answer_closed(self, questions: Sequence[str], *, max_new_tokens: int) -> Sequence[Answer]:
        """Answers B questions from the LLM's own weights."""
        ...


class Hit(Protocol):
    """One window of a document found by key, with its memory."""

    @property
    def namespace(self) -> str: ...
    @property
    def doc_id(self) -> str: ...
    @property
    def chunk_no(self) -> int: ...
    @property
    def title(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def text(self) -> str: ...
    @property
    def published_at(self) -> datetime | None: ...
    @property
    def ingested_at(self) -> datetime | None: ...
    @property
    def score(self) -> float: ...
    @property
    def memory(self) -> bytes: ...
    @property
    def n_tokens(self) -> int: ...


class DocumentInfo(Protocol):
    """One live document of the bank."""

    @property
    def doc_id(self) -> str: ...
    @property
    def title(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def published_at(self) -> datetime | None: ...
    @property
    def ingested_at(self) -> datetime | None: ...
    @property
    def chunks(self) -> int: ...
    @property
    def updated(self) -> bool: ...


class BankStats(Protocol):
    """Size and version of the bank."""

    @property
    def rows(self) -> int: ...
    @property
    def documents(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def fragments(self) -> int: ...
    @property
    def latest_ingested_at(self) -> datetime | None: ...


class MemoryReader(Protocol):
    """The reading side of the bank (`services.bank.reader.BankReader`); its errors are BankError."""

    def search(
        self, keys: npt.NDArray[np.floating[Any]], k: int, namespace: str, as_of: datetime | None
    ) -> Sequence[Sequence[Hit]]:
        """The k best hits, best first, for each of B keys (B, d_key)."""
        ...

    def latest(self, n: int, namespace: str) -> Sequence[DocumentInfo]:
        """The n documents that came in last, newest first."""
        ...

    def stats(self) -> BankStats:
        """Size and version now."""
        ...


ModelFactory = Callable[[Settings], AnsweringModel]
BankFactory = Callable[[Settings, AnsweringModel], MemoryReader]
