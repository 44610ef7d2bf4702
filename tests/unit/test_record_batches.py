"""Claims about decoding what a broker sends: one broken batch or record is set aside, all others are read."""

from __future__ import annotations

import gzip
import struct

import lz4.frame
import pytest
import snappy
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka.protocol.consumer import IsolationLevel

from services.stream.codecs import decompressed
from tests.record_batches import CODECS, Record, batch, changed, fetched, marker

HEADER_BYTES = 61
LAST_OFFSET_DELTA_AT, RECORDS_COUNT_AT, ATTRIBUTES_AT = 23, 57, 21

FIRST, SECOND = b"first " * 40, b"second " * 40  # so long that the codecs are worth their overhead
GOOD: list[Record] = [(b"a", FIRST, []), (None, SECOND, [("origin", b"wire")]), (b"c", None, [])]


def read(log: bytes, offset: int = 0) -> list[tuple[int, bytes | None]]:
    return [(one.offset, one.value) for one in fetched(log, offset)[0] if not one.undecodable]


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read(codec: str) -> None:
    assert (FIRST in batch(GOOD, 10, codec)) == (codec == "none")
    records, behind = fetched(batch(GOOD * 50, 10, codec))
    assert behind == 160
    assert [one.offset for one in records] == list(range(10, 160))
    assert [(one.key, one.value, list(one.headers)) for one in records[:3]] == GOOD
    assert {(one.topic, one.partition, one.timestamp_ms) for one in records} == {("documents", 3, 1_764_057_600_000)}


def readable(value: object) -> str:
    """A test's name without packed bytes, which hold the time at which they were packed."""
    return value if isinstance(value, str) else "bytes"


@pytest.mark.parametrize(
    ("codec", "packed"),
    [
        ("gzip", gzip.compress(b"ab") + gzip.compress(b"cd")),
        ("lz4", lz4.frame.compress(b"ab") + lz4.frame.compress(b"cd", block_linked=True)),
        ("zstd", zstandard.compress(b"ab") + zstandard.compress(b"cd")),
        ("zstd", zstandard.ZstdCompressor(level=22, write_content_size=False).compress(b"abcd")),
        ("snappy", snappy.compress(b"abcd")),
        ("none", b"abcd"),
    ],
    ids=readable,
)
def test_what_compressors_of_other_languages_write_is_read(codec: str, packed: bytes) -> None:
    assert decompressed(CODECS[codec], packed, 100) == b"abcd"


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_data_that_would_fill_the_memory_are_refused(codec: str) -> None:
    packer = {"gzip": gzip.compress, "snappy": snappy.compress, "lz4": lz4.frame.compress, "zstd": zstandard.compress}
    with pytest.raises(ValueError, match=codec):
        decompressed(CODECS[codec], packer[codec](bytes(10_000_000)), 1_000_000)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (changed(batch(GOOD, 3), ATTRIBUTES_AT, struct.pack(">h", 7)), "unknown compression codec 7"),
        (changed(batch(GOOD, 3), HEADER_BYTES + 4, b"\xff", checksum=False), "checksum"),
        (changed(batch(GOOD, 3, "zstd"), HEADER_BYTES + 2, b"\xff\xff\xff"), "zstd"),
        (changed(batch(GOOD, 3, "lz4"), HEADER_BYTES, b"\0\0\0\0"), "lz4"),
        (changed(batch(GOOD, 3, "gzip"), HEADER_BYTES, b"\0\0\0\0"), "gzip"),
        (changed(batch(GOOD, 3, "snappy"), HEADER_BYTES + 20, b"\xff\xff\xff"), "snappy"),
        (changed(batch(GOOD, 3), HEADER_BYTES, b"\xfe\x7f"), "within a record"),
        (changed(batch(GOOD, 3), RECORDS_COUNT_AT, struct.pack(">i", -1)), "left behind"),
        (changed(batch(GOOD, 3), RECORDS_COUNT_AT, struct.pack(">i", 2)), "left behind"),
    ],
    ids=readable,
)
def test_a_batch_that_cant_be_decoded_is_set_aside_alone(broken: bytes, why: str) -> None:
    log = batch(GOOD, 0) + broken + batch(GOOD, 6)
    records, behind = fetched(log)
    assert behind == 9
    (aside,) = [one for one in records if one.undecodable]
    assert why in aside.undecodable
    assert 3 <= aside.offset < 6
    assert aside.offset + aside.covers == 6
    assert aside.value == broken
    assert [one.offset for one in records] == sorted({one.offset for one in records})
    assert {0, 1, 2, 6, 7, 8} <= {one.offset for one in records}


def test_a_broken_record_is_set_aside_alone_with_its_own_bytes() -> None:
    whole = batch([(b"a", b"first", []), (b"b", b"middle", []), (b"c", b"last", [])])
    at = whole.index(b"middle") - 1  # the length of the value
    records, behind = fetched(changed(whole, at, b"\x7e"))
    assert [(one.offset, one.value) for one in records if not one.undecodable] == [(0, b"first"), (2, b"last")]
    (aside,) = [one for one in records if one.undecodable]
    assert (aside.offset, aside.covers, behind) == (1, 1, 3)
    assert b"middle" in (aside.value or b"")


@pytest.mark.parametrize("claimed", [2, 3, 60])
def test_a_record_that_claims_the_place_of_others_is_set_aside_alone(claimed: int) -> None:
    """Those behind it would take offsets of the next batch, whose records would count as read."""
    whole = batch([(b"a", b"first", []), (b"b", b"middle", []), (b"c", b"last", [])])
    at = whole.index(b"middle") - 4  # value's length, key, key's length, and before them what the record claims
    assert whole[at] == 2
    records, behind = fetched(changed(whole, at, bytes([2 * claimed])) + batch(GOOD, 3))
    assert [one.offset for one in records] == [0, 1, 2, 3, 4, 5]
    assert [one.value for one in records if not one.undecodable] == [b"first", b"last", FIRST, SECOND, None]
    assert f"{claimed} behind" in records[1].undecodable
    assert behind == 6


@pytest.mark.parametrize(("at", "new"), [(LAST_OFFSET_DELTA_AT, 1), (RECORDS_COUNT_AT, 4)])
def test_a_batch_that_counts_itself_wrongly_loses_no_record(at: int, new: int) -> None:
    records, behind = fetched(changed(batch(GOOD, 0), at, struct.pack(">i", new)) + batch(GOOD, 3))
    assert [(one.offset, one.value) for one in records] == [
        *enumerate((FIRST, SECOND, None)),
        *enumerate((FIRST, SECOND, None), 3),
    ]
    assert behind == 6


def test_a_header_whose_name_is_not_utf8_loses_no_record() -> None:
    whole = batch([(b"a", b"first", [("header", b"\xff")]), (b"b", b"second", [])])
    (first, second), _ = fetched(changed(whole, whole.index(b"header"), b"\xff\xfe"))
    assert first.headers == (("\\xff\\xfeader", b"\xff"),)
    assert second.value == b"second"


def test_a_damaged_batch_that_claims_to_end_far_behind_hides_no_later_one() -> None:
    far = struct.pack(">i", 2**31 - 1)
    damaged = changed(batch(GOOD, 0), LAST_OFFSET_DELTA_AT, far, checksum=False)
    assert read(damaged + batch(GOOD, 3)) == [(3, FIRST), (4, SECOND), (5, None)]
    assert fetched(damaged)[1] == 1, "the last of a fetch is not believed at all"


def test_reading_goes_on_in_the_middle_of_a_batch() -> None:
    assert read(batch(GOOD * 2, 0, "gzip"), 4) == [(4, SECOND), (5, None)]
    unknown = changed(batch(GOOD * 2), ATTRIBUTES_AT, struct.pack(">h", 6))
    (aside,), behind = fetched(unknown, 4)
    assert (aside.offset, aside.covers, behind) == (4, 2, 6)


def test_offsets_that_compaction_took_away_count_as_read() -> None:
    thinned = changed(batch(GOOD, 20), LAST_OFFSET_DELTA_AT, struct.pack(">i", 9))
    records, behind = fetched(thinned, 15)
    assert [one.offset for one in records] == [20, 21, 22]
    assert behind == 30
    empty = changed(batch(GOOD[:1], 30), RECORDS_COUNT_AT, struct.pack(">i", 0))[:HEADER_BYTES]
    empty = changed(empty, 8, struct.pack(">i", HEADER_BYTES - 12))
    assert fetched(empty, 30) == ([], 31)


def test_control_records_are_left_out_and_count_as_read() -> None:
    log = batch(GOOD, 0, producer_id=5) + marker(3, 5, abort=False)
    records, behind = fetched(log)
    assert [one.offset for one in records] == [0, 1, 2]
    assert behind == 4
    assert fetched(marker(4, 5, abort=True), 4) == ([], 5)


def test_reading_what_is_not_committed_gives_all_records_but_no_control_records() -> None:
    log = batch(GOOD, 0, producer_id=5) + marker(3, 5, abort=True)
    records, behind = fetched(log, isolation=IsolationLevel.READ_UNCOMMITTED)
    assert [one.offset for one in records] == [0, 1, 2]
    assert behind == 4


@given(st.data())
def test_whatever_is_in_a_batch_the_next_one_is_read(data: st.DataObject) -> None:
    """Any bytes of a batch changed, with and without a checksum that fits."""
    codec = data.draw(st.sampled_from(sorted(CODECS)))
    whole = batch(GOOD * 3, 0, codec, producer_id=data.draw(st.sampled_from([-1, 4])))
    at = data.draw(st.integers(12, len(whole) - 1))  # offset and length frame the batch: the broker's own work
    new = data.draw(st.binary(min_size=1, max_size=min(8, len(whole) - at)))
    broken = changed(whole, at, new, checksum=data.draw(st.booleans()))
    records, behind = fetched(broken + batch(GOOD, 9))
    assert [(one.offset, one.value) for one in records[-3:]] == [(9, FIRST), (10, SECOND), (11, None)]
    assert behind == 12
    places = [one.offset for one in records]
    assert places == sorted(set(places))
    assert all(one.value is not None for one in records if one.undecodable)
