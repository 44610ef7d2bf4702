"""What is written to a bank and read from it, as plain values that any part can import: nothing heavy comes with them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "BankStats",
    "Chunk",
    "CommitReport",
    "DocumentDelete",
    "DocumentInfo",
    "DocumentVersion",
    "DocumentWrite",
    "Hit",
    "Position",
]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record stood in Kafka: topic epoch, partition, offset, and Kafka's own timestamp of it (aware).

    The epoch counts re-creations of the topic, after which offsets start again at 0. `seq` is the producer's own number
    of the document's version, 0 where it has none.
    """

    epoch: int
    partition: int
    offset: int
    record_time: datetime
    seq: int = 0

    def __post_init__(self) -> None:
        _require_aware(self.record_time, "record_time")

    def newer_than(self, other: Position) -> bool:
        """Whether this record was written after `other`; a record is never newer than itself.

        The producer's own number decides first, in whatever order its records arrive. Offsets order one partition. The
        same document comes from two partitions of one epoch only when the number of partitions was raised: then the
        clock decides, and the partition number breaks ties.
        """
        if self.seq != other.seq:
            return self.seq > other.seq
        if self.epoch != other.epoch:
            return self.epoch > other.epoch
        if self.partition == other.partition:
            return self.offset > other.offset
        return (self.record_time, self.partition) > (other.record_time, other.partition)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One window of a document: its text, retrieval key (d_key,), packed memory and length in LLM tokens.

    `tokens` are the encoder's, packed for late interaction; b"" where there are none.
    """

    text: str
    key: npt.NDArray[np.floating[Any]]
    memory: bytes
    n_tokens: int
    tokens: bytes = b""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels between processes as plain bytes: thousands of small arrays would each be a buffer of their own."""
        return _chunk, (self.text, self.key.tobytes(), self.key.dtype.str, self.memory, self.n_tokens, self.tokens)


def _chunk(text: str, key: bytes, dtype: str, memory: bytes, n_tokens: int, tokens: bytes) -> Chunk:
    import numpy as np

    return Chunk(text, np.frombuffer(key, dtype), memory, n_tokens, tokens)


@dataclass(frozen=True, slots=True, eq=False)
class DocumentWrite:
    """A new version of a document with all its chunks; at least one, or the bank could not remember the position.

    `metadata` is any JSON; an empty object or list is none.
    """

    namespace: str
    doc_id: str
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    expires_at: datetime | None
    position: Position
    chunks: tuple[Chunk, ...]
    metadata: Any = None

    def __post_init__(self) -> None:
        if not self.chunks:
            raise ValueError(f"document {self.doc_id!r} has no chunks")
        _require_aware(self.published_at, "published_at")
        _require_aware(self.expires_at, "expires_at")


@dataclass(frozen=True, slots=True)
class DocumentDelete:
    """A tombstone: the document is gone from this position on, whether the bank knows it or not."""

    namespace: str
    doc_id: str
    position: Position


@dataclass(frozen=True, slots=True)
class CommitReport:
    """What one commit did: table version, rows added and closed, records ignored as stale, seconds it took."""

    version: int
    inserted_rows: int
    closed_rows: int
    stale: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found by a search; `score` is the cosine of its key, `rank` what the hits are ordered by, `memory` the code."""

    namespace: str
    doc_id: str
    chunk_no: int
    title: str | None
    url: str | None
    source: str | None
    text: str
    published_at: datetime | None
    ingested_at: datetime
    score: float
    rank: float
    memory: bytes
    n_tokens: int
    metadata: Any = None

    @property
    def passage(self) -> str:
        """The text that the compressor read when it wrote this memory: a fair RAG baseline reads the same."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """A live document; `updated` tells whether it replaced an earlier version, `text` is given by `get` only.

    `record_time` is Kafka's time of its record.
    """

    namespace: str
    doc_id: str
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime
    record_time: datetime
    chunks: int
    updated: bool
    text: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentVersion:
    """One version of a document: when it came, and when and why it stopped counting (all None: it is live)."""

    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime
    superseded_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    chunks: int
    text: str
    metadata: Any = None


@dataclass(frozen=True, slots=True)
class BankStats:
    """Size of a bank: rows (closed ones and guards included), live documents, table version, data bytes, fragments.

    `first_ingested_at` is that of the oldest row that is still kept. Unindexed rows are those that an index does not cover
    yet, all of them where there is none.
    """

    rows: int = 0
    documents: int = 0
    version: int = 0
    bytes: int = 0
    fragments: int = 0
    latest_ingested_at: datetime | None = None
    unindexed_words_rows: int = 0
    unindexed_keys_rows: int = 0
    first_ingested_at: datetime | None = None


def _require_aware(moment: datetime | None, name: str) -> None:
    if moment is not None and moment.tzinfo is None:
        raise ValueError(f"{name} must carry a time zone")
