"""What the query service needs from the model and from the bank, as Protocols that tests can satisfy too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cmt_core.generation.engine import StreamedAnswer
from cmt_core.generation.query import AnswerStart, Query
from cmt_core.retrieval.late_interaction import QueryKeys
from services.bank.document_filter import DocumentFilter
from services.bank.records import BankStats, DocumentInfo, DocumentVersion, Hit
from services.query.engine.messages import Ask, Event, Failure, HitList, Overview, Versions
from services.query.engine.ticket import Ticket
from services.settings import Settings

__all__ = [
    "Answerer",
    "AnsweringModel",
    "BankFactory",
    "BankModel",
    "MemoryReader",
    "ModelFactory",
    "RunningBatch",
    "StreamingModel",
]


class RunningBatch(Protocol):
    """Answers in progress (`cmt_core.generation.answering.AnswerBatch`); belongs to one thread."""

    def __len__(self) -> int: ...

    def prompt_tokens(self, query: Query) -> int:
        """Tokens that a query gives the LLM to read."""
        ...

    def join(self, queries: Sequence[Query]) -> Sequence[AnswerStart]:
        """Reads the prompts and gives what is known of their answers."""
        ...

    def step(self) -> Mapping[int, Sequence[int | None]]:
        """What is new of every row: no token, one or several, and None behind the last where its answer has ended."""
        ...

    def leave(self, row: int) -> None:
        """Ends a row."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, as far as they go."""
        ...


class BankModel(Protocol):
    """What a model's side of the bank is: the keys that find memories, and which memories it reads."""

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

    def looked_at(self, k: int) -> int:
        """How many memories are to be found where k are to be read."""
        ...

    def query_keys(self, questions: Sequence[str]) -> QueryKeys:
        """What B questions look for."""
        ...


class AnsweringModel(BankModel, Protocol):
    """The frozen LLM with its retriever and memory parts (`cmt_core.model.CMT`)."""

    def answer_batch(self) -> RunningBatch:
        """A running batch of its own, on the model."""
        ...


class StreamingModel(BankModel, Protocol):
    """A model whose engine batches by itself (`cmt_core.vllm_engine.model.VLLMModel`); belongs to one event loop."""

    def start(self) -> None:
        """Called once, in the running loop; returns when questions can be asked. Raises CoreError."""
        ...

    def prompt_tokens(self, query: Query) -> int:
        """Tokens that a query gives the LLM to read."""
        ...

    async def begin(self, query: Query, max_new_tokens: int) -> StreamedAnswer:
        """Hands a query to the engine. Raises ValueError for one that can't be, EngineLost when the engine is gone."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, as far as they go."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the engine is gone for good."""
        ...

    def close(self) -> None:
        """Ends the engine."""
        ...


class Answerer(Protocol):
    """What answers in a replica: our own running batch (scheduler.py) or questions that stream from an engine (streaming.py).

    All methods but `stop` return at once or after a look at the bank, and any thread may call them.
    """

    @property
    def model_id(self) -> str: ...
    @property
    def running(self) -> int:
        """Answers that are being written."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why nothing is answered here, None while it is."""
        ...

    @property
    def lost(self) -> bool:
        """Whether nothing will ever be answered here again: this process is of no more use."""
        ...

    def submit(self, ask: Ask, deliver: Callable[[Event], None]) -> Ticket:
        """Takes a question; `deliver` gets its answer piece by piece, from another thread. Raises Retired."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a question, wherever it is."""
        ...

    def search(self, ask: Ask) -> HitList | Failure:
        """What the bank holds for a question, relevant or not."""
        ...

    def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its `n` latest documents."""
        ...

    def history(self, doc_id: str, namespace: str) -> Versions | Failure:
        """Every version of a document."""
        ...

    def stop(self) -> None:
        """Answers what is inside, takes nothing new, and ends."""
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
        tokens: Sequence[npt.NDArray[np.float32]],
        every_chunk: bool,
    ) -> Sequence[Sequence[Hit]]:
        """The k best hits, best first, for each of B keys (B, d_key); `texts` are the B questions in words, `tokens` in
        token vectors (Q, D).
        """
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


ModelFactory = Callable[[Settings], AnsweringModel | StreamingModel]
"""Gives a StreamingModel where `serve.engine` is vllm, else an AnsweringModel."""
BankFactory = Callable[[Settings, BankModel], MemoryReader]
