"""What the query service needs from the model and from the bank, as Protocols that tests can satisfy too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cmt_core.generation.query import AnswerStart, Query
from services.bank.document_filter import DocumentFilter
from services.bank.records import BankStats, DocumentInfo, DocumentVersion, Hit
from services.settings import Settings

__all__ = [
    "AnsweringModel",
    "BankFactory",
    "MemoryReader",
    "ModelFactory",
    "RunningBatch",
]


class RunningBatch(Protocol):
    """Answers in progress (`cmt_core.generation.answering.AnswerBatch`); belongs to one thread."""

    def __len__(self) -> int: ...

    def prompt_tokens(self, query: Query) -> int:
        """Tokens that a query gives the LLM to read."""
        ...

    def join(self, queries: Sequence[Query]) -> Sequence[AnswerStart]:
        """Reads the prompts and gives their first tokens."""
        ...

    def step(self) -> Mapping[int, int | None]:
        """The next token of every row, None where its answer has ended."""
        ...

    def leave(self, row: int) -> None:
        """Ends a row."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, as far as they go."""
        ...


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
    @property
    def min_score(self) -> float: ...
    @property
    def answer_tokens(self) -> int: ...
    @property
    def follows_instructions(self) -> bool: ...

    def query_keys(self, questions: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Search keys of questions, (B, d_key)."""
        ...

    def answer_batch(self) -> RunningBatch:
        """A running batch of its own, on the model."""
        ...


class MemoryReader(Protocol):
    """The reading side of the bank (`services.bank.reader.BankReader`); its errors are BankError."""

    def search(
        self,
        keys: npt.NDArray[np.floating[Any]],
        k: int,
        namespace: str,
        as_of: datetime | None,
        wanted: DocumentFilter | None,
        *,
        texts: Sequence[str],
        every_chunk: bool,
    ) -> Sequence[Sequence[Hit]]:
        """The k best hits, best first, for each of B keys (B, d_key); `texts` are the B questions in words."""
        ...

    def history(self, doc_id: str, namespace: str) -> Sequence[DocumentVersion]:
        """Every version of a document, newest first."""
        ...

    def latest(self, n: int, namespace: str) -> Sequence[DocumentInfo]:
        """The n documents that came in last, newest first."""
        ...

    def stats(self) -> BankStats:
        """Size and version now."""
        ...


ModelFactory = Callable[[Settings], AnsweringModel]
BankFactory = Callable[[Settings, AnsweringModel], MemoryReader]
