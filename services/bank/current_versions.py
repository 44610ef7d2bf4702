"""Finds the newest version that a bank has of documents: its place in Kafka, and the rows that a later one will close."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from services.bank.filters import CURRENT, of_documents
from services.bank.records import Position
from services.bank.store import bank_errors

__all__ = ["HALVES", "SPLIT_ROWS", "CurrentVersion", "CurrentVersions", "Document", "find_current_versions"]

Document = tuple[str, str]
"""Namespace and id."""

_POSITION = ["topic_epoch", "partition", "offset", "record_time", "seq"]
_COLUMNS = ["namespace", "doc_id", "chunk_no", *_POSITION, "ingested_at", "deleted_at"]
_LOOKUP_DOCUMENTS = 4096
SPLIT_ROWS = 128  # from so many on they are looked up in two halves at once: Lance reads scattered rows on one core
HALVES = ThreadPoolExecutor(2, thread_name_prefix="bank-lookup")


@dataclass(slots=True)
class CurrentVersion:
    """The newest version of one document, and the row ids of its current rows."""

    position: Position
    ingested_at: datetime
    row_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CurrentVersions:
    """The newest versions of the documents asked for, as far as the bank knows them.

    `rows` are their current rows: the columns that were looked at, and `_rowid`.
    """

    of: dict[Document, CurrentVersion]
    rows: pa.Table


def find_current_versions(table: Any, documents: Iterable[Document], uri: str) -> CurrentVersions:
    """Looks documents up by their ids, in the version of the table's handle; `uri` is the bank's.

    Raises ValueError for an id that is not valid Unicode, BankUnavailable when the table can't be read.
    """
    wanted = [of_documents(group) for group in _grouped(set(documents))] or ["false"]
    with bank_errors(uri):
        rows = pa.concat_tables(HALVES.map(lambda where: _current_rows(table, where), wanted))
    versions: dict[Document, CurrentVersion] = {}
    for row in rows.drop_columns(["chunk_no", "deleted_at"]).to_pylist():
        position = Position(row["topic_epoch"], row["partition"], row["offset"], row["record_time"], row["seq"])
        current = versions.setdefault((row["namespace"], row["doc_id"]), CurrentVersion(position, row["ingested_at"]))
        current.row_ids.append(row["_rowid"])
    return CurrentVersions(versions, rows)


def _current_rows(table: Any, where: str) -> pa.Table:
    return table.search().where(f"{CURRENT} AND {where}").select(_COLUMNS).with_row_id(True).to_arrow()


def _grouped(documents: Collection[Document]) -> Iterable[list[Document]]:
    ordered = iter(sorted(documents))
    size = len(documents) if len(documents) < SPLIT_ROWS else min(_LOOKUP_DOCUMENTS, -(-len(documents) // 2))
    while group := list(itertools.islice(ordered, size)):
        yield group
