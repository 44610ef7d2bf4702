"""Turns new document versions into rows of the bank's table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.bank.full_text_index import indexed_words
from services.bank.labels import labels_of
from services.bank.records import Chunk, DocumentDelete, DocumentWrite
from services.bank.schema import GUARD_CHUNK, BankLayout

__all__ = ["key_column", "record_rows"]


def record_rows(
    records: Sequence[DocumentWrite | DocumentDelete], layout: BankLayout, ingested_at: datetime
) -> pa.Table:
    """The table rows of new document versions: one per chunk of a write, one guard row per delete.

    Raises ValueError when a chunk does not fit the layout, its key has no direction to search by, or a field is of a
    kind or size that its column can't hold.
    """
    try:
        return _record_rows(records, layout, ingested_at)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise ValueError(f"a field does not fit the bank: {type(error).__name__}: {error}") from error


def _record_rows(
    records: Sequence[DocumentWrite | DocumentDelete], layout: BankLayout, ingested_at: datetime
) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for record in records:
        rows.extend(_write_rows(record, layout) if isinstance(record, DocumentWrite) else [_guard_row(record, layout)])
    schema = layout.arrow_schema()
    keys = np.concatenate([row["key"] for row in rows])
    columns: dict[str, Any] = {
        name: [row.get(name) for row in rows] for name in schema.names if name not in ("key", "ingested_at", "model_id")
    }
    columns["ingested_at"] = [ingested_at] * len(rows)
    columns["deleted_at"] = [ingested_at if row["chunk_no"] == GUARD_CHUNK else None for row in rows]
    columns["model_id"] = [layout.model_id] * len(rows)
    columns["key"] = key_column(keys.reshape(-1, layout.d_key))
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def key_column(keys: npt.NDArray[np.float16]) -> pa.FixedSizeListArray:
    """Keys (N, d_key) as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), keys.shape[1])


def _write_rows(write: DocumentWrite, layout: BankLayout) -> list[dict[str, Any]]:
    about = {
        "n_chunks": len(write.chunks),
        "title": write.title,
        "url": write.url,
        "source": write.source,
        "published_at": write.published_at,
        "expires_at": write.expires_at,
        "metadata": json.dumps(write.metadata, ensure_ascii=False) if write.metadata else None,
        "labels": labels_of(write.metadata) or None,
    }
    return [
        _identity(write, number)
        | about
        | {
            "text": chunk.text,
            "words": indexed_words(chunk.text, write.title),
            "n_tokens": chunk.n_tokens,
            "key": _checked_key(chunk, layout, write.doc_id),
            "tokens": chunk.tokens or None,
            "memory": chunk.memory.rstrip(b"\0"),  # a short window leaves a third of its memory empty; padded when read
        }
        for number, chunk in enumerate(write.chunks)
    ]


def _guard_row(delete: DocumentDelete, layout: BankLayout) -> dict[str, Any]:
    key = np.zeros(layout.d_key, np.float16)
    return _identity(delete, GUARD_CHUNK) | {"n_chunks": 0, "n_tokens": 0, "key": key}


def _identity(record: DocumentWrite | DocumentDelete, chunk_no: int) -> dict[str, Any]:
    return {
        "namespace": record.namespace,
        "doc_id": record.doc_id,
        "chunk_no": chunk_no,
        "topic_epoch": record.position.epoch,
        "partition": record.position.partition,
        "offset": record.position.offset,
        "seq": record.position.seq,
        "record_time": record.position.record_time,
    }


def _checked_key(chunk: Chunk, layout: BankLayout, doc_id: str) -> npt.NDArray[np.float16]:
    if len(chunk.memory) != layout.memory_bytes:
        raise ValueError(
            f"document {doc_id!r}: a memory of {len(chunk.memory)} bytes, the bank's are {layout.memory_bytes}"
        )
    with np.errstate(over="ignore"):
        key = np.asarray(chunk.key).astype(np.float16)
    if key.shape != (layout.d_key,):
        raise ValueError(f"document {doc_id!r}: a key of shape {key.shape}, the bank's are ({layout.d_key},)")
    if not np.isfinite(key).all() or not key.any():
        raise ValueError(f"document {doc_id!r}: its key is zero or not finite")
    return key
