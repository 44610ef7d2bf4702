"""The HTTP bodies that are sent: OpenAI's objects with `sources` and `cmt` beside their own fields, and ours."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cmt_core.generation.query import Mode
from services.query.engine.messages import Read, WeightedBy

__all__ = [
    "ArticleInfo",
    "ChatChoice",
    "ChatCompletion",
    "ChatMessage",
    "CmtInfo",
    "DeleteAccepted",
    "Document",
    "DocumentState",
    "ErrorBody",
    "IngestInfo",
    "Model",
    "ModelList",
    "PlaceInfo",
    "Ready",
    "SearchHit",
    "SearchResult",
    "SourceInfo",
    "StarterInfo",
    "StarterList",
    "Stats",
    "TextChoice",
    "TextCompletion",
    "Usage",
    "VersionInfo",
]

FinishReason = Literal["stop", "length"]
DocumentState = Literal["live", "superseded", "deleted", "expired"]


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True)


class ErrorDetail(_Sent):
    """What is wrong, in words and as a code."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Sent):
    """Every refusal."""

    error: ErrorDetail


class Usage(_Sent):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PlaceInfo(_Sent):
    """Characters of a passage: the first, and the one behind the last."""

    start: int
    end: int


class SourceInfo(_Sent):
    """A document that was read: how well it matched, and its share of the model's attention.

    `chunk_no` and `ingested_at` name the passage and the version that were read (`GET /v1/documents/{id}`), `place` is where in
    the passage the answer stands word for word, null where it does not.
    """

    doc_id: str
    chunk_no: int
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime | None
    score: float
    weight: float | None
    place: PlaceInfo | None


class CmtInfo(_Sent):
    """How the answer came about; `known` is false when nothing relevant was found and the model was not asked.

    `read` is what the answer was read from in the end, `grounded` whether all that it tells stands in the sources (null: nothing
    was read). A source's weight is its share of what `weighted_by` says: the LLM's attention, or (engine vllm) the prior by which
    sources are chosen.
    """

    mode: Mode
    known: bool
    read: Read
    grounded: bool | None
    weighted_by: WeightedBy
    bank_version: int | None
    model_id: str
    retrieve_ms: float
    first_token_ms: float
    generate_ms: float
    notes: list[str]


class ChatMessage(_Sent):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class ChatChoice(_Sent):
    """The one choice."""

    index: int = 0
    message: ChatMessage
    logprobs: Any = None
    finish_reason: FinishReason


class TextChoice(_Sent):
    """The one choice."""

    index: int = 0
    text: str
    logprobs: Any = None
    finish_reason: FinishReason


class _Completion(_Sent):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    sources: list[SourceInfo]
    cmt: CmtInfo


class ChatCompletion(_Completion):
    """OpenAI's chat completion, with sources."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class TextCompletion(_Completion):
    """OpenAI's text completion, with sources."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class Model(_Sent):
    """One way to answer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["cmt"] = "cmt"
    description: str


class ModelList(_Sent):
    """The models."""

    object: Literal["list"] = "list"
    data: list[Model]


class SearchHit(_Sent):
    """A window that matched."""

    doc_id: str
    chunk_no: int
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime | None
    score: float
    text: str
    metadata: Any


class SearchResult(_Sent):
    """Windows, best first."""

    object: Literal["list"] = "list"
    data: list[SearchHit]
    bank_version: int | None


class VersionInfo(_Sent):
    """One version of a document, from when to when it counted; `text` has its `chunks` passages, one a line.

    The last sentence of a passage may open the next one, too.
    """

    state: DocumentState
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime | None
    superseded_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    chunks: int
    text: str
    metadata: Any


class Document(_Sent):
    """A document with all versions that the bank still has, newest first."""

    object: Literal["document"] = "document"
    id: str
    namespace: str
    state: DocumentState
    history: list[VersionInfo]


class DeleteAccepted(_Sent):
    """A tombstone is in Kafka; the document is gone with its ingest."""

    object: Literal["document.deleted"] = "document.deleted"
    id: str
    namespace: str
    status: Literal["accepted"] = "accepted"
    known: bool


class ArticleInfo(_Sent):
    """A document at a glance."""

    doc_id: str
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime | None
    chunks: int
    updated: bool


class IngestInfo(_Sent):
    """Ingest at a glance; null is unknown.

    Where no ingest process reports to this service (`running` is null then), lag, rate and dead letters come from Kafka's
    offsets, and the freshness is that of the newest document in the bank.
    """

    records: int | None
    dead_letters: int | None
    windows: int | None
    records_per_s: float | None
    lag_records: int | None
    freshness_s: float | None
    running: bool | None


class Stats(_Sent):
    """The whole system at a glance."""

    documents: int
    rows: int
    version: int
    bytes: int
    fragments: int
    first_ingested_at: datetime | None
    latest_ingested_at: datetime | None
    latest: list[ArticleInfo]
    questions_answered: int
    ingest: IngestInfo
    model_id: str


class StarterInfo(_Sent):
    """A question to begin with, and the document that it is answered from."""

    question: str
    doc_id: str


class StarterList(_Sent):
    """Questions that the bank can answer now."""

    object: Literal["list"] = "list"
    data: list[StarterInfo]


class Ready(_Sent):
    """Whether questions can be answered, and why not."""

    status: Literal["ready", "not ready"]
    reason: str | None = None
