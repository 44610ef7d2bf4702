"""A small bank in memory with the reading side of the real one, for tests and for trying the service without a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from services.bank.document_filter import DocumentFilter
from services.bank.labels import labels_of
from services.bank.records import BankStats, DocumentInfo, DocumentVersion, Hit

__all__ = ["InMemoryBank", "window"]


def window(
    doc_id: str,
    text: str,
    memory: bytes,
    *,
    chunk_no: int = 0,
    namespace: str = "default",
    title: str | None = None,
    url: str | None = None,
    source: str | None = None,
    published_at: datetime | None = None,
    ingested_at: datetime | None = None,
    metadata: Any = None,
) -> Hit:
    """A window to add, now unless `ingested_at` is given; its score and rank are filled in by a search."""
    return Hit(
        namespace=namespace,
        doc_id=doc_id,
        chunk_no=chunk_no,
        title=title,
        url=url,
        source=source,
        text=text,
        published_at=published_at,
        ingested_at=ingested_at or datetime.now(UTC),
        score=0.0,
        rank=0.0,
        memory=memory,
        n_tokens=len(text.split()),
        metadata=metadata,
    )


class InMemoryBank:
    """Windows in a list, searched exactly by inner product."""

    def __init__(self) -> None:
        self._rows: list[tuple[npt.NDArray[np.float32], Hit]] = []
        self._record_times: dict[str, datetime] = {}

    def add(self, key: npt.NDArray[np.float32], window: Hit, record_time: datetime | None = None) -> None:
        """Adds a window with its key (d_key,); its record came into Kafka at `record_time`, or when it was ingested."""
        self._rows.append((key, window))
        self._record_times[window.doc_id] = record_time or window.ingested_at

    def search(
        self,
        keys: npt.NDArray[np.floating[Any]],
        k: int,
        namespace: str,
        as_of: datetime | None,
        wanted: DocumentFilter | None = None,
        *,
        texts: Sequence[str] = (),
        tokens: Sequence[npt.NDArray[np.float32]] = (),
        every_chunk: bool = False,
    ) -> list[list[Hit]]:
        """The k best windows for each of B keys (B, d_key) among those ingested up to `as_of`; words are not looked at."""
        seen = [
            (key, row)
            for key, row in self._rows
            if row.namespace == namespace and _known(row, as_of) and _wanted(row, wanted)
        ]
        return [_best(key, seen, k, every_chunk) for key in keys]

    def latest(self, n: int, namespace: str) -> list[DocumentInfo]:
        """The n documents that came in last, newest first."""
        chunks: dict[str, list[Hit]] = {}
        for _, row in self._rows:
            if row.namespace == namespace:
                chunks.setdefault(row.doc_id, []).append(row)
        documents = [
            DocumentInfo(
                namespace,
                last.doc_id,
                last.title,
                last.url,
                last.source,
                last.published_at,
                ingested_at=last.ingested_at,
                record_time=self._record_times[last.doc_id],
                chunks=len(rows),
                updated=False,
            )
            for rows in chunks.values()
            for last in rows[-1:]
        ]
        return sorted(documents, key=lambda document: document.ingested_at, reverse=True)[:n]

    def history(self, doc_id: str, namespace: str) -> list[DocumentVersion]:
        """The one version of a document, or none: this bank forgets what it replaces."""
        rows = [row for _, row in self._rows if (row.namespace, row.doc_id) == (namespace, doc_id)]
        text = "\n".join(row.text for row in rows)
        return [
            DocumentVersion(
                title=first.title,
                url=first.url,
                source=first.source,
                published_at=first.published_at,
                ingested_at=first.ingested_at,
                superseded_at=None,
                deleted_at=None,
                expires_at=None,
                chunks=len(rows),
                text=text,
                metadata=first.metadata,
            )
            for first in rows[:1]
        ]

    def stats(self) -> BankStats:
        """Size now; every added window is a version."""
        rows = [row for _, row in self._rows]
        times = sorted(row.ingested_at for row in rows)
        size = sum(len(row.memory) for row in rows)
        return BankStats(
            rows=len(rows),
            documents=len({(row.namespace, row.doc_id) for row in rows}),
            version=len(rows),
            bytes=size,
            fragments=1,
            first_ingested_at=times[0] if times else None,
            latest_ingested_at=times[-1] if times else None,
        )


def _known(row: Hit, as_of: datetime | None) -> bool:
    return as_of is None or row.ingested_at <= as_of


def _wanted(row: Hit, wanted: DocumentFilter | None) -> bool:
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
    rows: Sequence[tuple[npt.NDArray[np.float32], Hit]],
    k: int,
    every_chunk: bool,
) -> list[Hit]:
    scores = [float(key @ own) for own, _ in rows]
    scored = [replace(row, score=score, rank=score) for score, (_, row) in zip(scores, rows, strict=True)]
    scored.sort(key=lambda row: -row.score)
    if not every_chunk:
        first: dict[str, Hit] = {}
        for row in scored:
            first.setdefault(row.doc_id, row)
        scored = list(first.values())
    return scored[:k]
