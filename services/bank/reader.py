"""Asks a bank: the best memories now or as of a past moment, documents, and their history."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from lancedb.query import ColumnOrdering

from cmt_core.retrieval.ranking import DENSE, Ranking
from services.bank.document_filter import DocumentFilter
from services.bank.filters import ingested_after, matching, of_documents, quoted, visible
from services.bank.index_state import IndexState, index_state
from services.bank.records import BankStats, DocumentInfo, DocumentVersion, Hit
from services.bank.schema import BankLayout
from services.bank.search import Request, search_table
from services.bank.store import BankStore, bank_errors
from services.errors import BankUnavailable

__all__ = ["BankReader"]

_Answer = TypeVar("_Answer")
_Keys = npt.NDArray[np.floating[Any]]

_ABOUT_COLUMNS = ["doc_id", "title", "url", "source", "published_at", "ingested_at"]
_VERSION_ABOUT = [
    *("title", "url", "source", "published_at", "ingested_at"),
    *("superseded_at", "deleted_at", "expires_at"),
]
_VERSION_COLUMNS = ["chunk_no", "text", *_VERSION_ABOUT, "metadata"]
_INFO_COLUMNS = ["namespace", "n_chunks", "record_time", *_ABOUT_COLUMNS]


class BankReader:
    """Reads the bank at `uri`; thread-safe, and never more than `read_staleness_s` behind the writer.

    A bank that does not exist yet is picked up when it appears; until then it reads as empty, or is BankUnavailable where it
    `must_exist`. `layout` None takes the bank's own. `clock` gives the time (aware) at which documents expire.
    All methods raise BankUnavailable when the bank can't be read, and BankMismatch when it is of another layout.
    """

    def __init__(
        self,
        uri: str,
        layout: BankLayout | None = None,
        read_staleness_s: float = 0.5,
        storage_options: Mapping[str, str] | None = None,
        *,
        ranking: Ranking = DENSE,
        must_exist: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._must_exist = must_exist
        self._ranking = ranking
        self._indexes: tuple[tuple[str, int], IndexState] | None = None
        self._store = BankStore(uri, storage_options)
        self._layout = layout
        self._read_staleness_s = read_staleness_s
        self._clock = clock
        self._lock = threading.Lock()
        self._table: Any | None = None
        self._checked_s = float("-inf")
        self._ingested: tuple[tuple[str, int], datetime | None, datetime | None] = (("", 0), None, None)

    def search(
        self,
        keys: _Keys,
        k: int,
        namespace: str = "default",
        as_of: datetime | None = None,
        wanted: DocumentFilter | None = None,
        *,
        texts: Sequence[str] = (),
        tokens: Sequence[npt.NDArray[np.float32]] = (),
        every_chunk: bool = False,
    ) -> list[list[Hit]]:
        """The k best documents of a namespace, each by its best chunk, for each query key; `keys` is (B, d_key).

        `texts` are the B questions in words; without them, or where the reader's ranking does not read words, the cosine
        alone decides. `tokens` are the questions' token vectors (Q, D), which count beside the words where the ranking reads
        them. `every_chunk` counts all chunks of a document. `as_of` (aware) asks the bank as it was at that moment, `wanted`
        narrows the documents. Exact while the bank has no vector index (below `ann_rows` of the writer); the payload column is
        read for the rows found only. Raises ValueError for keys of another shape, or with no direction.
        """
        queries = _checked_queries(keys)
        if k < 1:
            raise ValueError("k must be at least 1")
        if texts and len(texts) != len(queries):
            raise ValueError(f"{len(texts)} texts for {len(queries)} keys")
        if tokens and len(tokens) != len(queries):
            raise ValueError(f"the tokens of {len(tokens)} questions for {len(queries)} keys")
        if not len(queries):
            return []
        self._require_width(queries.shape[1])
        where = f"namespace = {quoted(namespace)} AND {visible(self._clock(), as_of)}"
        if wanted is not None:
            where += f" AND {matching(wanted)}"
        request = Request(queries, texts, tokens, k, where, self._ranking, every_chunk)
        empty: list[list[Hit]] = [[] for _ in queries]

        def found(table: Any) -> list[list[Hit]]:
            if wanted is not None and wanted.labels and "labels" not in table.schema.names:
                return empty  # a bank before version 6 has none
            return search_table(table, request, self._index_state(table))

        return self._read(found, empty)

    def stats(self) -> BankStats:
        """Size and version of the bank, from counts and table metadata."""
        return self._read(self._stats, BankStats())

    def latest(self, n: int, namespace: str = "default") -> list[DocumentInfo]:
        """The n live documents of a namespace that came last into the bank, newest first; without their text."""
        where = f"namespace = {quoted(namespace)} AND chunk_no = 0 AND {visible(self._clock())}"
        return self._read(lambda table: _documents(table, where, n), [])

    def versions_since(self, moment: datetime) -> int:
        """Versions of documents, deletions included, that came into the bank after `moment` (aware)."""
        where = f"chunk_no <= 0 AND {ingested_after(moment)}"
        return self._read(lambda table: int(table.count_rows(where)), 0)

    def get(self, doc_id: str, namespace: str = "default") -> DocumentInfo | None:
        """A live document with the text of its chunks joined by newlines, or None."""
        where = f"{of_documents([(namespace, doc_id)])} AND {visible(self._clock())}"
        return self._read(lambda table: _document(table, where), None)

    def history(self, doc_id: str, namespace: str = "default") -> list[DocumentVersion]:
        """Every version of a document that the bank still has, newest first, with its text; a delete ends the last one."""
        where = f"{of_documents([(namespace, doc_id)])} AND chunk_no >= 0"
        return self._read(lambda table: _versions(table, where), [])

    def _read(self, question: Callable[[Any], _Answer], empty: _Answer) -> _Answer:
        """Asks one table version; once more on a fresh one, since maintenance may have removed files under it."""
        table = self._snapshot()
        if table is None:
            return empty
        try:
            with bank_errors(self._store.uri):
                return question(table)
        except BankUnavailable:
            with self._lock:
                self._table, self._checked_s = None, float("-inf")
        table = self._snapshot()
        if table is None:
            return empty
        with bank_errors(self._store.uri):
            return question(table)

    def _snapshot(self) -> Any | None:
        """A handle pinned to a version that was the latest at most `read_staleness_s` ago."""
        with self._lock:
            now_s = time.monotonic()
            if self._table is None or now_s - self._checked_s >= self._read_staleness_s:
                fresh = self._store.open(self._layout)
                if fresh is None or self._table is None or _place(fresh) != _place(self._table):
                    self._table = fresh
                self._checked_s = now_s
            if self._table is None and self._must_exist:
                raise BankUnavailable(
                    f"there is no bank at {self._store.uri}: start `cmt ingest`, which makes it, or correct bank.uri"
                )
            return self._table

    def _index_state(self, table: Any) -> IndexState:
        place = _place(table)
        if self._indexes is None or self._indexes[0] != place:
            self._indexes = (place, index_state(table))
        return self._indexes[1]

    def _require_width(self, d_key: int) -> None:
        table = self._snapshot()
        layout = self._layout if table is None else BankLayout.from_schema(table.schema)
        if layout is not None and d_key != layout.d_key:
            raise ValueError(f"query keys have {d_key} dimensions, the bank's have {layout.d_key}")

    def _stats(self, table: Any) -> BankStats:
        sizes = table.stats()
        indexes = self._index_state(table)
        version = table.version
        if self._ingested[0] != _place(table):
            column = table.search().select(["ingested_at"]).to_arrow()["ingested_at"]
            self._ingested = (_place(table), pc.min(column).as_py(), pc.max(column).as_py())
        return BankStats(
            rows=sizes["num_rows"],
            documents=table.count_rows(f"chunk_no = 0 AND {visible(self._clock())}"),
            version=version,
            bytes=sizes["total_bytes"],
            fragments=sizes["fragment_stats"]["num_fragments"],
            first_ingested_at=self._ingested[1],
            latest_ingested_at=self._ingested[2],
            unindexed_words_rows=indexes.full_text_tail_rows,
            unindexed_keys_rows=indexes.vector_tail_rows,
        )


def _place(table: Any) -> tuple[str, int]:
    """What a handle shows: the table, which changes when the bank is re-encoded, and its version."""
    return str(table.name), int(table.version)


def _documents(table: Any, where: str, n: int) -> list[DocumentInfo]:
    newest_first = [ColumnOrdering(column_name="ingested_at", ascending=False), ColumnOrdering(column_name="doc_id")]
    rows = table.search().where(where).select(_INFO_COLUMNS).order_by(newest_first).limit(n).to_arrow().to_pylist()
    updated = _updated(table, [(row["namespace"], row["doc_id"]) for row in rows])
    return [_info(row, (row["namespace"], row["doc_id"]) in updated) for row in rows]


def _document(table: Any, where: str) -> DocumentInfo | None:
    rows = table.search().where(where).select([*_INFO_COLUMNS, "chunk_no", "text"]).to_arrow().to_pylist()
    if not rows:
        return None
    rows.sort(key=lambda row: int(row["chunk_no"]))
    text = "\n".join(row["text"] for row in rows)
    first = rows[0]
    return _info(first, bool(_updated(table, [(first["namespace"], first["doc_id"])])), text)


def _versions(table: Any, where: str) -> list[DocumentVersion]:
    columns = [name for name in _VERSION_COLUMNS if name in table.schema.names]
    rows = table.search().where(where).select(columns).to_arrow().to_pylist()
    by_start: dict[datetime, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["chunk_no"])):
        by_start.setdefault(row["ingested_at"], []).append(row)
    return [
        DocumentVersion(
            text="\n".join(row["text"] for row in chunks),
            chunks=len(chunks),
            metadata=json.loads(chunks[0].get("metadata") or "null"),
            **{name: chunks[0][name] for name in _VERSION_ABOUT},
        )
        for _, chunks in sorted(by_start.items(), reverse=True)
    ]


def _updated(table: Any, documents: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the documents that replaced an earlier version; one written anew after a delete did not."""
    if not documents:
        return set()
    where = f"{of_documents(documents)} AND chunk_no = 0 AND superseded_at IS NOT NULL"
    rows = table.search().where(where).select(["namespace", "doc_id"]).to_arrow().to_pylist()
    return {(row["namespace"], row["doc_id"]) for row in rows}


def _info(row: Mapping[str, Any], updated: bool, text: str | None = None) -> DocumentInfo:
    about = {name: row[name] for name in _ABOUT_COLUMNS}
    return DocumentInfo(
        namespace=row["namespace"],
        chunks=row["n_chunks"],
        updated=updated,
        text=text,
        record_time=row["record_time"],
        **about,
    )


def _checked_queries(keys: _Keys) -> npt.NDArray[np.float32]:
    queries = np.asarray(keys, dtype=np.float32)  # (B, d_key)
    if queries.ndim != 2:
        raise ValueError(f"keys must be (B, d_key), not of shape {queries.shape}")
    if not np.isfinite(queries).all() or not queries.any(axis=1).all():
        raise ValueError("a query key is zero or not finite")
    return queries
