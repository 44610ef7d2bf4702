"""A small bank in memory with the reading side of the real one, for tests and for trying the service without a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from services.bank.document_filter import DocumentFilter
from services.bank.labels import labels_of

__all__ = ["InMemoryBank", "StoredDocument", "StoredStats", "StoredVersion", "StoredWindow"]


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """One window with its memory; `score` is filled in by a search."""

    doc_id: str
    text: str
    memory: bytes
    chunk_no: int = 0
    namespace: str = "default"
    title: str | None = None
    url: str | None = None
    source: str | None = None
    published_at: datetime | None = None
    ingested_at: datetime | None = None
    record_time: datetime | None = None
    score: float = 0.0
    metadata: Any = None

    @property
    def rank(self) -> float:
        """The score: this bank orders by it alone."""
        return self.score

    @property
    def n_tokens(self) -> int:
        """Words of the window."""
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """One document as `latest` lists it."""

    doc_id: str
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime | None
    chunks: int
    updated: bool = False
    record_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredStats:
    """Size and version."""

    rows: int
    documents: int
    version: int
    bytes: int
    fragments: int
    latest_ingested_at: datetime | None


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A live version of a document."""

    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    ingested_at: datetime | None
    chunks: int
    text: str
    superseded_at: datetime | None = None
    deleted_at: datetime | None = None
    expires_at: datetime | None = None
    metadata: Any = None


class InMemoryBank:
    """Windows in a list, searched exactly by inner product."""

    def __init__(self) -> None:
        self._rows: list[tuple[npt.NDArray[np.float32], StoredWindow]] = []

    def add(self, key: npt.NDArray[np.float32], window: StoredWindow) -> None:
        """Adds a window with its key (d_key,)."""
        ingested_at = window.ingested_at or datetime.now(UTC)
        self._rows.append((key, replace(window, ingested_at=ingested_at)))

    def search(
        self,
        keys: npt.NDArray[np.floating[Any]],
        k: int,
        namespace: str,
        as_of: datetime | None,
        wanted: DocumentFilter | None = None,
        *,
        texts: Sequence[str] = (),
        every_chunk: bool = False,
    ) -> list[list[StoredWindow]]:
        """The k best windows for each of B keys (B, d_key) among those ingested up to `as_of`; words are not looked at."""
        seen = [
            (key, row)
            for key, row in self._rows
            if row.namespace == namespace and _known(row, as_of) and _wanted(row, wanted)
        ]
        return [_best(key, seen, k, every_chunk) for key in keys]

    def latest(self, n: int, namespace: str) -> list[StoredDocument]:
        """The n documents that came in last, newest first."""
        chunks: dict[str, list[StoredWindow]] = {}
        for _, row in self._rows:
            if row.namespace == namespace:
                chunks.setdefault(row.doc_id, []).append(row)
        documents = [
            StoredDocument(
                r.doc_id, r.title, r.url, r.source, r.published_at, r.ingested_at, len(rows), record_time=r.record_time
            )
            for rows in chunks.values()
            for r in rows[-1:]
        ]
        return sorted(documents, key=lambda d: d.ingested_at or datetime.min.replace(tzinfo=UTC), reverse=True)[:n]

    def history(self, doc_id: str, namespace: str) -> list[StoredVersion]:
        """The one version of a document, or none: this bank forgets what it replaces."""
        rows = [row for _, row in self._rows if (row.namespace, row.doc_id) == (namespace, doc_id)]
        text = "\n".join(row.text for row in rows)
        return [
            StoredVersion(r.title, r.url, r.source, r.published_at, r.ingested_at, len(rows), text, metadata=r.metadata)
            for r in rows[:1]
        ]

    def stats(self) -> StoredStats:
        """Size now; every added window is a version."""
        rows = [row for _, row in self._rows]
        newest = max((row.ingested_at for row in rows if row.ingested_at), default=None)
        size = sum(len(row.memory) for row in rows)
        return StoredStats(len(rows), len({(r.namespace, r.doc_id) for r in rows}), len(rows), size, 1, newest)


def _known(row: StoredWindow, as_of: datetime | None) -> bool:
    return as_of is None or (row.ingested_at is not None and row.ingested_at <= as_of)


def _wanted(row: StoredWindow, wanted: DocumentFilter | None) -> bool:
    if wanted is None:
        return True
    at, labels = row.published_at, set(labels_of(row.metadata))
    return (
        (not wanted.sources or row.source in wanted.sources)
        and (not wanted.doc_ids or row.doc_id in wanted.doc_ids)
        and (wanted.published_after is None or (at is not None and at >= wanted.published_after))
        and (wanted.published_before is None or (at is not None and at < wanted.published_before))
        and all(labels.intersection(group) for group in wanted.labels)
    )


def _best(
    key: npt.NDArray[np.floating[Any]],
    rows: Sequence[tuple[npt.NDArray[np.float32], StoredWindow]],
    k: int,
    every_chunk: bool,
) -> list[StoredWindow]:
    scored = sorted((replace(row, score=float(key @ own)) for own, row in rows), key=lambda row: -row.score)
    if not every_chunk:
        first: dict[str, StoredWindow] = {}
        for row in scored:
            first.setdefault(row.doc_id, row)
        scored = list(first.values())
    return scored[:k]
