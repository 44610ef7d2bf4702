"""Re-encodes a bank for another checkpoint, from its stored texts, while the old memories go on serving.

1. make a new table beside the old one and encode all rows into it, with their times
2. encode what has come meanwhile, in rounds, until a round finds little
3. wait for ingest to end, which writes memories of the old checkpoint, and take its place as the bank's one writer
4. encode the rest, take out what was erased meanwhile, and bring the indexes up
5. switch: one commit on the bank's first table names the new one; whoever opens the bank from then on gets that
6. drop the old memories
A crash before 5 leaves the bank as it was; the next try begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from services.bank.erasure import erase_deleted
from services.bank.fence import WriterFence
from services.bank.filters import changed_after, of_documents
from services.bank.full_text_index import indexed_words
from services.bank.indexing import update_indexes
from services.bank.records import Chunk
from services.bank.rows import key_column
from services.bank.schema import GUARD_CHUNK, BankLayout
from services.bank.store import BankStore, WriterLock, bank_errors
from services.errors import BankUnavailable

__all__ = ["Encode", "reindex_bank"]

Encode = Callable[[Sequence[tuple[str, str]]], Sequence[Chunk]]
"""The chunk of each (title, text)."""

_BATCH_ROWS = 64
_SMALL_ROUND_ROWS = 256
_IDENTITY = ["namespace", "doc_id", "chunk_no", "topic_epoch", "partition", "offset"]
_START = datetime(1970, 1, 1, tzinfo=UTC)


def reindex_bank(
    uri: str,
    storage_options: Mapping[str, str] | None,
    layout: BankLayout,
    encode: Encode,
    *,
    again: bool = False,
    ann_rows: int = 0,
    lock_wait_s: float = 3600.0,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Gives the rows of the new table. `report` is told what happens.

    Raises BankUnavailable when there is no bank, it is of this checkpoint already (unless `again`, which fills in what an older
    version of this program did not write), or ingest has not ended after `lock_wait_s` seconds; BankFull.
    """
    store = BankStore(uri, storage_options)
    source = store.existing()
    if BankLayout.from_schema(source.schema) == layout and not again:
        raise BankUnavailable(f"bank {uri} is of checkpoint {layout.model_id} already: --again encodes it once more")
    with bank_errors(uri):
        target = store.create_next(layout)
        mark = _START
        while True:
            rows, mark = _catch_up(store.reopened(source), target, mark, layout, encode)
            report(f"{rows} rows encoded")
            if rows <= _SMALL_ROUND_ROWS:
                break
        report("waiting for ingest to end")
        lock = WriterLock(store)
        lock.acquire(lock_wait_s)
        try:
            WriterFence(uri, storage_options).take()
            source = store.reopened(source)
            rows, _ = _catch_up(source, target, mark, layout, encode)
            _settle(source, target, layout, encode)
            update_indexes(target, ann_rows, whole=True)
            store.switch_to(target, source)
        finally:
            lock.release()
        report(f"switched after {rows} more rows")
        return int(target.count_rows())


def _catch_up(source: Any, target: Any, mark: datetime, layout: BankLayout, encode: Encode) -> tuple[int, datetime]:
    """Brings the target from the source's state at `mark` to that of its handle; rows written, and the new mark.

    Every commit of a writer has a later time than the one before, which the rows that it adds or closes carry.
    """
    return _copy(source, target, changed_after(mark), layout, encode, merging=mark != _START, mark=mark)


def _copy(
    source: Any,
    target: Any,
    where: str,
    layout: BankLayout,
    encode: Encode,
    *,
    merging: bool,
    mark: datetime = _START,
) -> tuple[int, datetime]:
    """Encodes rows of the source into the target; their number, and the newest of their times and `mark`."""
    columns = [name for name in source.schema.names if name not in ("key", "memory", "words", "tokens")]
    scan = source.to_lance().scanner(columns=columns, filter=where, batch_size=_BATCH_ROWS, scan_in_order=True)
    rows = 0
    for batch in scan.to_batches():
        if not batch.num_rows:
            continue
        encoded = _encoded(pa.Table.from_batches([batch]), layout, encode)
        if merging:
            merge = target.merge_insert(_IDENTITY).when_matched_update_all().when_not_matched_insert_all()
            merge.execute(encoded)
        else:
            target.add(encoded)
        rows += encoded.num_rows
        mark = max(mark, *_times(batch))
    target.checkout_latest()
    return rows, mark


def _times(batch: pa.RecordBatch) -> list[datetime]:
    columns = (batch[name].to_pylist() for name in ("ingested_at", "superseded_at", "deleted_at"))
    return [moment for column in columns for moment in column if moment is not None]


def _encoded(rows: pa.Table, layout: BankLayout, encode: Encode) -> pa.Table:
    """The rows with keys and memories of the new layout; guards have none."""
    numbers = [n for n, chunk in enumerate(rows["chunk_no"].to_pylist()) if chunk != GUARD_CHUNK]
    titles, texts = rows["title"].to_pylist(), rows["text"].to_pylist()
    chunks = encode([(titles[n] or "", texts[n]) for n in numbers]) if numbers else []
    keys = np.zeros((rows.num_rows, layout.d_key), np.float16)
    memories: list[bytes | None] = [None] * rows.num_rows
    tokens: list[bytes | None] = [None] * rows.num_rows
    counts = rows["n_tokens"].to_pylist()
    for n, chunk in zip(numbers, chunks, strict=True):
        keys[n], memories[n], tokens[n] = chunk.key, chunk.memory.rstrip(b"\0"), chunk.tokens or None
        counts[n] = chunk.n_tokens
    new: dict[str, Any] = {
        "words": pa.array(
            [None if text is None else indexed_words(text, title) for title, text in zip(titles, texts, strict=True)],
            pa.string(),
        ),
        "key": key_column(keys),
        "memory": pa.array(memories, pa.binary()),
        "tokens": pa.array(tokens, pa.binary()),
        "n_tokens": pa.array(counts, pa.int32()),
        "model_id": pa.array([layout.model_id] * rows.num_rows, pa.string()),
    }
    schema = layout.arrow_schema()
    for field in schema:
        if field.name not in new:  # a bank before version 6 has no metadata
            known = field.name in rows.column_names
            new[field.name] = rows[field.name] if known else pa.nulls(rows.num_rows, field.type)
    return pa.table([new[name] for name in schema.names], schema=schema)


def _settle(source: Any, target: Any, layout: BankLayout, encode: Encode) -> None:
    """Makes the target's rows those of the source, whatever the rounds have missed.

    Erased documents and history that is not kept are gone from the source; and a clock that was set back between two
    writers gives rows with times before the mark.
    """
    kept, copied = (_ends(table) for table in (source, target))
    for namespace, doc_id, chunk_no, epoch, partition, offset in copied.keys() - kept.keys():
        place = f"chunk_no = {chunk_no} AND topic_epoch = {epoch} AND partition = {partition} AND offset = {offset}"
        target.delete(f"{of_documents([(namespace, doc_id)])} AND {place}")
    if copied.keys() - kept.keys():
        target.checkout_latest()
        erase_deleted(target)
    changed = sorted({row[:2] for row, ends in kept.items() if copied.get(row) != ends})
    for start in range(0, len(changed), _BATCH_ROWS):
        _copy(source, target, of_documents(changed[start : start + _BATCH_ROWS]), layout, encode, merging=True)
    target.checkout_latest()


def _ends(table: Any) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Each row's identity with its end, superseded or deleted."""
    columns = [*_IDENTITY, "superseded_at", "deleted_at"]
    rows = table.to_lance().to_table(columns=columns)
    found = zip(*(rows[name].to_pylist() for name in columns), strict=True)
    return {row[: len(_IDENTITY)]: row[len(_IDENTITY) :] for row in found}
