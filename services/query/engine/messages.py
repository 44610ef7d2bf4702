"""What travels between the HTTP side and the engine: a question, pieces of its answer, the answer, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Literal

from cmt_core.generation.query import Mode, Query
from cmt_core.text.grounding import Place
from services.bank.document_filter import DocumentFilter
from services.bank.records import BankStats, DocumentInfo, DocumentVersion, Hit

__all__ = [
    "MODELS",
    "UNKNOWN",
    "Ask",
    "Delta",
    "Event",
    "Failure",
    "HitList",
    "ModelName",
    "Overview",
    "Read",
    "ReplicaState",
    "Reply",
    "Source",
    "Versions",
    "WeightedBy",
]

ModelName = Literal["cmt", "cmt-memory", "cmt-rag", "cmt-hybrid", "cmt-closed"]
MODELS: dict[ModelName, Mode] = {
    "cmt": "auto",
    "cmt-memory": "memory",
    "cmt-rag": "rag",
    "cmt-hybrid": "hybrid",
    "cmt-closed": "closed",
}
Read = Literal["memory", "text", "both", "nothing"]
"""What an answer was read from in the end."""
UNKNOWN = "I don't know."
"""What is answered when nothing in the bank is relevant enough."""


@dataclass(frozen=True, slots=True)
class Ask(Query):
    """A question to the service: what the LLM is asked, and how the memories that it reads are found.

    `top_k`, `min_score` and `max_new_tokens` None mean the service's defaults, `as_of` None means now.

    `lookups` are the texts that are looked up in the bank; a hit counts by its best score over them. `citations`: every part of
    the answer that stands in sources names them.
    """

    memory_weight: float | None = 1.0
    lookups: tuple[str, ...] = ()
    top_k: int | None = None
    namespace: str = "default"
    as_of: datetime | None = None
    wanted: DocumentFilter | None = None
    min_score: float | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    deadline_s: float = 120.0
    citations: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Source(Hit):
    """A hit that an answer was read from, without its memory; `weight` is its share of the attention, None where unknown.

    `place` is where the answer stands in its text word for word, None where it does not.
    """

    weight: float | None = None
    place: Place | None = None

    @classmethod
    def of(cls, hit: Hit, weight: float | None, place: Place | None = None) -> Source:
        """The hit with its weight."""
        about = {one.name: getattr(hit, one.name) for one in fields(hit)}
        return cls(**about | {"memory": b"", "weight": weight, "place": place})


WeightedBy = Literal["attention", "prior"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer with its sources; times count from the question's arrival at the engine.

    `grounded` says whether what it tells stands in its sources, None where none were read. `weighted_by` says of what a source's
    weight is its share: the LLM's attention, or the prior by which it was chosen, where an engine tells no attention.
    """

    answer: str
    sources: tuple[Source, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    model_id: str
    bank_version: int | None
    retrieve_ms: float
    first_token_ms: float
    generate_ms: float
    mode: Mode = "memory"
    known: bool = True
    read: Read = "memory"
    grounded: bool | None = None
    notes: tuple[str, ...] = ()
    weighted_by: WeightedBy = "attention"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question got no answer: it is at fault or too long, its time is over, the bank can't be read, the engine is
    being replaced and another one may answer, or something broke.
    """

    kind: Literal["question", "too_long", "deadline", "bank", "engine", "internal"]
    message: str


Event = Delta | Reply | Failure
"""An answer is any number of Delta, then one Reply or Failure."""


@dataclass(frozen=True, slots=True)
class HitList:
    """What the bank holds for one question, best hit first; `best_score` counts hits that were not relevant enough too.

    An answer's sources are those `sources` hits that were read most, all of them for None. `relevant` says of each hit whether
    it is, `completed_by` which other hit has words of the question that it lacks (cmt_core/retrieval/complement.py), `began` when
    the bank's first document came (None: it has none).
    """

    hits: tuple[Hit, ...] = ()
    bank_version: int | None = None
    retrieve_ms: float = 0.0
    best_score: float | None = None
    relevant: tuple[bool, ...] = ()
    completed_by: tuple[int | None, ...] = ()
    began: datetime | None = None
    sources: int | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """Every version of a document, newest first."""

    versions: tuple[DocumentVersion, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """The bank at a glance."""

    stats: BankStats
    latest: tuple[DocumentInfo, ...]
    model_id: str


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What one replica of the engine answers from (llm, checkpoint, retriever, bank), and why it could not load another."""

    replica: str
    pid: int
    revision: str
    target: Mapping[str, str]
    model_id: str
    error: str | None = field(default=None)
