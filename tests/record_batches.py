"""Record batches as they are in Kafka's log, whole or damaged, and a way to produce them byte for byte."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.util import calc_crc32c
from kafka.structs import TopicPartition

from services.stream.batches import FetchedRecords
from services.stream.record import RawRecord

__all__ = [
    "CODECS",
    "batch",
    "changed",
    "fetched",
    "marker",
    "produce_batch",
]

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_ATTRIBUTES, _CRC = struct.Struct(">h"), struct.Struct(">I")
_ATTRIBUTES_AT, _CRC_AT = 21, 17
_CONTROL = 0x20
_TIMEOUT_S = 10.0

Record = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]]]


def batch(
    records: Sequence[Record],
    base_offset: int = 0,
    codec: str = "none",
    producer_id: int = -1,
    time_ms: int = 1_764_057_600_000,
) -> bytes:
    """One batch of message format 2 with records (key, value, headers); of a transaction when it has a producer."""
    transactional = producer_id >= 0
    sequence = 0 if transactional else -1
    epoch = 0 if transactional else -1
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], transactional, producer_id, epoch, sequence, 2**24)
    for number, (key, value, headers) in enumerate(records):
        assert builder.append(number, time_ms, key, value, list(headers))
    built = bytearray(builder.build())
    struct.pack_into(">q", built, 0, base_offset)
    return bytes(built)


def marker(base_offset: int, producer_id: int, *, abort: bool) -> bytes:
    """The control batch that ends a transaction."""
    key = struct.pack(">hh", 0, 0 if abort else 1)
    built = bytearray(batch([(key, struct.pack(">hi", 0, 0), [])], base_offset, producer_id=producer_id))
    attributes: int = _ATTRIBUTES.unpack_from(built, _ATTRIBUTES_AT)[0]
    _ATTRIBUTES.pack_into(built, _ATTRIBUTES_AT, attributes | _CONTROL)
    return _with_checksum(built)


def changed(whole: bytes, at: int, new: bytes, *, checksum: bool = True) -> bytes:
    """The batch with other bytes at a place; with `checksum` as if its producer had meant it so."""
    built = bytearray(whole)
    built[at : at + len(new)] = new
    return _with_checksum(built) if checksum else bytes(built)


def fetched(
    log: bytes, offset: int = 0, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
) -> tuple[list[RawRecord], int]:
    """What a fetch of these batches from `offset` on gives, and the offset of the next fetch."""
    one = FetchedRecords(offset, TopicPartition("documents", 3), MemoryRecords(log), isolation_level=isolation)
    return list(one.take()), int(one.next_fetch_offset)


def produce_batch(bootstrap: str, topic: str, partition: int, whole: bytes) -> None:
    """Sends a batch in a Produce request of version 7; AssertionError when the broker refuses it."""
    host, _, port = bootstrap.partition(":")
    body = struct.pack(">hhi", -1, -1, int(_TIMEOUT_S * 1000))
    body += struct.pack(">i", 1) + _string(topic)
    body += struct.pack(">iii", 1, partition, len(whole)) + whole
    request = struct.pack(">hhi", 0, 7, 1) + _string("test") + body
    with socket.create_connection((host, int(port)), _TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            found = answer.read(struct.unpack(">i", answer.read(4))[0])
    error = struct.unpack_from(">h", found, 4 + 4 + 2 + len(topic) + 4 + 4)[0]
    assert error == 0, f"the broker refuses the batch with error code {error}"


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _with_checksum(built: bytearray) -> bytes:
    _CRC.pack_into(built, _CRC_AT, calc_crc32c(memoryview(built)[_ATTRIBUTES_AT:]))
    return bytes(built)
