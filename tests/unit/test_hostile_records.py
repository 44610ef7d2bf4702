"""No record can end the stream: whatever is in its fields, time, headers and key, the record behind it is stored."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bank.records import CommitReport, DocumentWrite
from services.bank.rows import record_rows
from services.bank.schema import BankLayout
from services.errors import RecordError
from services.ingest.batch_work import BatchWork
from services.ingest.compressor import CompressorWorker
from services.ingest.inbox import PolledRecord
from services.ingest.offsets import Ticket
from services.ingest.ports import BankRecord
from services.ingest.retry import Retry
from services.metrics import Metrics
from services.settings import load_settings
from services.stream.record import Document, RawRecord
from services.testing.lexical import LexicalModel, load_lexical

MODEL = LexicalModel()
LAYOUT = BankLayout(MODEL.model_id, MODEL.d_key, MODEL.memory_bytes)
GOOD = Document("good", "The ferry to Varde sails again.")

NAMES = [
    ["id", "text", "title", "url", "source", "published_at", "expires_at", "lang", "namespace", "metadata", "seq"],
    ["schema", "payload", "before", "after", "op", "_id", "__deleted", "body"],
]
odd_texts = st.text(max_size=40) | st.sampled_from(
    [
        *("\x00", "\ud800", "x\ud83dy", "\ufeff", "\u200b", "\x1b]0;t\x07", "a" * 5000, " ", "1e999", "../.."),
        *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z"),
        *("' OR 1=1 --", "<|im_end|>", "default", "good"),
    ]
)
odd_numbers = st.integers() | st.floats() | st.sampled_from([2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0])
odd_json = st.recursive(
    st.none() | st.booleans() | odd_numbers | odd_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=6,
)
documents = st.fixed_dictionaries(
    {"id": st.just("d1") | odd_texts, "text": st.just("The ferry sails.") | odd_texts},
    optional=dict.fromkeys([name for names in NAMES for name in names if name not in ("id", "text")], odd_json),
)


@st.composite
def values(draw: st.DrawFn) -> bytes | None:
    """JSON of documents in the first place; other JSON, bytes, frames, nothing."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.none() | st.binary(max_size=60))
    if kind == 1:
        depth = draw(st.sampled_from([10, 3_000, 100_000]))
        return b'{"id": ' + b"[" * depth + b"]" * depth + b"}"
    written = json.dumps(draw(odd_json if kind == 2 else documents))
    front = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\0\0\0\0\x07", b"\n "]))
    return front + written.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"])), "surrogatepass")


header_names = st.sampled_from(["namespace", "seq", "cmt-place", "cmt-reason", "cmt-null-value", ""]) | odd_texts
header_values = st.binary(max_size=30) | st.sampled_from(
    [b"9" * 18 + b"/" + b"9" * 9 + b"/" + b"9" * 18, b"-1/0/0", b"9" * 19, b"\xc2\xb2", b"default", b"\xff"]
)
int64 = st.integers(-(2**63), 2**63 - 1)
records = st.builds(
    RawRecord,
    topic=st.just("documents"),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=int64 | st.sampled_from([253_402_300_800_000, 1_764_057_600_000_000, -1, 0]),
    key=st.none() | st.just(b"d1") | st.binary(max_size=30) | odd_texts.map(lambda text: text.encode(errors="replace")),
    value=values(),
    headers=st.lists(st.tuples(header_names, header_values), max_size=4).map(tuple),
    undecodable=st.just("") | st.just("") | st.just("") | st.text(min_size=1, max_size=20),
)


def stored(written: Sequence[BankRecord]) -> CommitReport:
    """What the bank's writer makes of records before it commits them."""
    rows = record_rows(written, LAYOUT, datetime.now(UTC))
    assert rows.num_rows >= len(written)
    return CommitReport(1, rows.num_rows, 0, 0, 0.0)


@pytest.fixture(scope="module")
def work() -> BatchWork:
    settings, metrics = load_settings(), Metrics()
    compressor = CompressorWorker(settings, load_lexical, metrics)
    return BatchWork(settings.kafka, compressor.compress, stored, metrics, Retry(0.1, threading.Event().wait))


def taken(record: RawRecord) -> PolledRecord:
    return PolledRecord(record, Ticket(record.partition, record.offset, record.timestamp_ms), 5)


@given(hostile=st.lists(records, min_size=1, max_size=4))
def test_the_record_behind_any_others_is_stored_and_each_of_them_is_stored_or_a_letter(
    work: BatchWork, hostile: list[RawRecord]
) -> None:
    good = RawRecord("documents", 0, 9, 1_764_057_600_000, b"good", GOOD.to_json())
    prepared = work.prepare([taken(one) for one in [*hostile, good]])
    assert isinstance(prepared[-1].outcome, DocumentWrite)
    letters: list[tuple[PolledRecord, RecordError]] = work.store(prepared)
    assert good not in [one.record for one, _ in letters]
    for _, error in letters:
        assert error.reason
        assert "\n" not in str(error)
    for one in prepared:
        if isinstance(one.outcome, DocumentWrite):
            assert 1970 <= one.outcome.position.record_time.year <= 9999


def test_a_whole_batch_of_one_hostile_record_leaves_the_counts_right(work: BatchWork) -> None:
    before: dict[str, Any] = dict(work.outcomes)
    place = (("cmt-place", b"9" * 18 + b"/" + b"9" * 9 + b"/" + b"9" * 18),)
    record = RawRecord("documents", 0, 0, 2**63 - 1, b"good", GOOD.to_json(), place)
    assert work.store(work.prepare([taken(record)])) == []
    assert work.outcomes["written"] == before.get("written", 0) + 1
