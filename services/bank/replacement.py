"""Replaces rows of a bank's table, known by their row ids, in one atomic commit that reads no other row.

A row id is a row's address, its fragment and its place there, and holds for one version of the table. The steps:
1. mark the rows as deleted: a new deletion file for each fragment that has some of them
2. write the rows that come instead as a new fragment
3. name both in one commit; before it, no version of the table knows the files of 1 and 2
Lance's own merge finds the rows by joining six columns of the whole table (decision 0063).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata, write_fragments

__all__ = ["closed_rows", "commit_replacement", "staged_replacement"]

_OFFSET_BITS = 32  # a row id is fragment << 32 | place in the fragment


def closed_rows(table: Any, deleted: Mapping[int, bool], schema: pa.Schema, now: datetime) -> pa.Table:
    """Rows of the table, complete, with the time of their end: {row id: by a delete, not by a newer version}."""
    if not deleted:
        return schema.empty_table()
    rows = table.take_row_ids(list(deleted)).with_row_id().to_arrow()
    if rows.num_rows != len(deleted):
        raise RuntimeError(f"{len(deleted) - rows.num_rows} rows to close are not in version {table.version}")
    by_delete = pa.array([deleted[row_id] for row_id in rows["_rowid"].to_pylist()])
    # the guard of an earlier delete is already deleted: whatever comes next supersedes it
    by_delete = pc.and_(by_delete, pc.is_null(rows["deleted_at"]))
    moment = pa.scalar(now, schema.field("deleted_at").type)
    rows = _with_column(rows, "deleted_at", pc.if_else(by_delete, moment, rows["deleted_at"]))
    rows = _with_column(rows, "superseded_at", pc.if_else(by_delete, rows["superseded_at"], moment))
    return rows.select(schema.names).cast(schema)


def staged_replacement(dataset: Any, row_ids: Iterable[int], rows: pa.Table) -> lance.LanceOperation.Update:
    """Writes the files of a commit that puts `rows` in the place of those with `row_ids` of the dataset's version.

    Nobody sees them before `commit_replacement`; without it, cleaning up removes them. Raises what Lance raises.
    """
    places: dict[int, list[int]] = {}
    for row_id in row_ids:
        places.setdefault(row_id >> _OFFSET_BITS, []).append(row_id & (1 << _OFFSET_BITS) - 1)
    updated: list[FragmentMetadata] = []
    emptied: list[int] = []
    for number, offsets in places.items():
        fragment = dataset.get_fragment(number).delete_rows(offsets)
        if fragment is None:
            emptied.append(number)
        else:
            updated.append(fragment)
    added = write_fragments(rows, dataset)
    return lance.LanceOperation.Update(removed_fragment_ids=emptied, updated_fragments=updated, new_fragments=added)


def commit_replacement(dataset: Any, staged: lance.LanceOperation.Update) -> int:
    """Makes a staged replacement the next version of the table, all at once, and gives its number.

    Index builds that were committed since the dataset's version are no hindrance. A commit in between that changed
    the same fragments makes it fail; one that only added rows does not, and shows in the number.
    """
    return int(lance.LanceDataset.commit(dataset, staged, read_version=dataset.version).version)


def _with_column(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)
