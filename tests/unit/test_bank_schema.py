"""Claims about positions, layouts and the rows that records become."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from services.bank.records import Chunk, DocumentDelete, DocumentWrite, Position
from services.bank.rows import record_rows
from services.bank.schema import GUARD_CHUNK, BankLayout
from services.errors import BankUnavailable

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LAYOUT = BankLayout("checkpoint-a", d_key=4, memory_bytes=8)


def position(epoch: int = 0, partition: int = 0, offset: int = 0, second: int = 0) -> Position:
    return Position(epoch, partition, offset, T0 + timedelta(seconds=second))


def write(*chunks: Chunk) -> DocumentWrite:
    return DocumentWrite("default", "doc", "Title", None, None, None, None, position(), chunks)


def chunk(key: object = (1, 0, 0, 0), memory: bytes = b"12345678") -> Chunk:
    return Chunk("text", np.asarray(key, dtype=np.float32), memory, n_tokens=3)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        (position(epoch=1, offset=0), position(epoch=0, offset=9, second=9)),
        (position(offset=2, second=0), position(offset=1, second=9)),
        (position(partition=0, offset=1, second=5), position(partition=1, offset=9, second=4)),
        (position(partition=1, second=5), position(partition=0, second=5)),
    ],
    ids=["higher epoch", "higher offset of one partition", "later time across partitions", "partition breaks ties"],
)
def test_one_of_two_positions_is_newer(newer: Position, older: Position) -> None:
    assert newer.newer_than(older)
    assert not older.newer_than(newer)


def test_position_is_not_newer_than_itself() -> None:
    assert not position(offset=3).newer_than(position(offset=3))


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValueError, match="record_time must carry a time zone"):
        Position(0, 0, 0, datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="published_at"):
        DocumentWrite("default", "doc", None, None, None, datetime(2026, 1, 1), None, position(), (chunk(),))


def test_layout_survives_the_schema() -> None:
    assert BankLayout.from_schema(LAYOUT.arrow_schema()) == LAYOUT


@pytest.mark.parametrize("metadata", [None, {"cmt.bank": "no json"}, {"cmt.bank": '{"format": 1}'}])
def test_foreign_table_is_not_a_bank(metadata: dict[str, str] | None) -> None:
    with pytest.raises(BankUnavailable, match="not a memory bank"):
        BankLayout.from_schema(pa.schema([pa.field("a", pa.int32())], metadata=metadata))


def test_bank_of_a_later_format_asks_for_an_update() -> None:
    schema = LAYOUT.arrow_schema().with_metadata({"cmt.bank": '{"format": 2, "model_id": "x"}'})
    with pytest.raises(BankUnavailable, match="update this program"):
        BankLayout.from_schema(schema)


def test_write_becomes_a_row_per_chunk_and_delete_a_guard_row() -> None:
    delete = DocumentDelete("default", "gone", position(offset=1))
    rows = record_rows([write(chunk(), chunk((0, 1, 0, 0), b"abcdefgh")), delete], LAYOUT, T0).to_pylist()

    assert [(row["doc_id"], row["chunk_no"], row["n_chunks"]) for row in rows] == [
        ("doc", 0, 2),
        ("doc", 1, 2),
        ("gone", GUARD_CHUNK, 0),
    ]
    assert [row["memory"] for row in rows] == [b"12345678", b"abcdefgh", None]
    assert [row["deleted_at"] for row in rows] == [None, None, T0]
    assert {row["model_id"] for row in rows} == {"checkpoint-a"}
    assert rows[1]["key"] == [0, 1, 0, 0]


def test_document_without_chunks_is_refused() -> None:
    with pytest.raises(ValueError, match="no chunks"):
        write()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (chunk(memory=b"short"), "5 bytes"),
        (chunk(key=(1, 2)), r"shape \(2,\)"),
        (chunk(key=(0, 0, 0, 0)), "zero or not finite"),
        (chunk(key=(1, np.nan, 0, 0)), "zero or not finite"),
        (chunk(key=(1e30, 0, 0, 0)), "zero or not finite"),
    ],
)
def test_chunk_that_does_not_fit_the_bank_is_refused(wrong: Chunk, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        record_rows([write(chunk(), wrong)], LAYOUT, T0)
