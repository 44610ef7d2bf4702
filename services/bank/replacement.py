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

from services.bank.current_versions import HALVES, SPLIT_ROWS, CurrentVersions
from services.bank.schema import BankLayout

__all__ = ["closed_rows", "commit_replacement", "staged_replacement"]

_OFFSET_BITS = 32  # a row id is fragment << 32 | place in the fragment


def closed_rows(
    table: Any, versions: CurrentVersions, ending: Mapping[int, bool], layout: BankLayout, now: datetime
) -> pa.Table:
    """Current rows, complete, with the time of their end: of `ending` {row id: by a delete, not by a newer version}.

    A column costs some microseconds for every row that is read, so that what the versions have is not read again.
    Raises RuntimeError when the table's version lacks a row, or what Lance raises.
    """
    schema = layout.arrow_schema()
    if not ending:
        return schema.empty_table()
    row_ids = pa.array(list(ending), pa.uint64())
    rows = _in_order(versions.rows, row_ids)
    # the guard of an earlier delete is already deleted: whatever comes next supersedes it
    by_delete = pc.and_(pa.array(list(ending.values())), pc.is_null(rows["deleted_at"]))
    moment = pa.scalar(now, schema.field("deleted_at").type)
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names if name != "_rowid"} | {
        "deleted_at": pc.if_else(by_delete, moment, rows["deleted_at"]),
        "superseded_at": pc.if_else(by_delete, pa.scalar(None, moment.type), moment),  # a current row has none
        "model_id": pa.array([layout.model_id] * len(ending)),  # all rows of a bank have the same
    }
    rest = [name for name in schema.names if name not in columns]
    taken = _in_order(_taken(table, list(ending), rest), row_ids)
    columns |= {name: taken[name] for name in rest}
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


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


def _taken(table: Any, row_ids: list[int], columns: list[str]) -> pa.Table:
    """Columns of rows and `_rowid`, many rows in two halves at once."""
    size = len(row_ids) if len(row_ids) < SPLIT_ROWS else -(-len(row_ids) // 2)
    parts = [row_ids[start : start + size] for start in range(0, len(row_ids), size)]
    return pa.concat_tables(
        HALVES.map(lambda part: table.take_row_ids(part).select(columns).with_row_id().to_arrow(), parts)
    )


def _in_order(rows: pa.Table, row_ids: pa.Array) -> pa.Table:
    """The rows with these ids, in their order."""
    places = pc.index_in(row_ids, value_set=rows["_rowid"].combine_chunks())
    if places.null_count:
        raise RuntimeError(f"{places.null_count} rows that a commit closes are not in the table")
    return rows.take(places)
