"""Decodes record batches one by one, so that what can't be decoded is set aside and never ends reading.

kafka-python raises the first thing that it can't decode out of `poll`, drops what followed, and does not get past it.
Here a batch or a single record that can't be decoded becomes a RawRecord that says so, with its bytes; what stands behind
it is read on. Control records and the records of aborted transactions are left out, and count as read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import UnknownTopicOrPartitionError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from services.stream.codecs import decompressed
from services.stream.membership import keep_finished_joins
from services.stream.record import RawRecord

__all__ = ["DocumentConsumer", "FetchedRecords"]

_MOST_BATCH_BYTES = 128 * 2**20
_DETAIL_CHARS = 200
_HEADER = DefaultRecordBatch.HEADER_STRUCT
_LENGTH_ENDS_AT = DefaultRecordBatch.AFTER_LEN_OFFSET
_FIRST_OFFSET = struct.Struct(">q")


class DocumentConsumer(KafkaConsumer):  # type: ignore[misc] # kafka-python has no types
    """A KafkaConsumer whose `poll` gives RawRecords, and raises nothing on account of what a batch holds."""

    def __init__(self, **configs: Any) -> None:
        super().__init__(**configs)
        self._fetcher = _Fetcher(self._client, self._subscription, metrics=self._metrics, **self.config)
        keep_finished_joins(self._coordinator)

    def beginning_offsets(self, partitions: Any, timeout_ms: int | None = None) -> dict[Any, int]:
        """As the client's own; KafkaError, and no KeyError, for a partition so new that the client does not know it yet."""
        with _known_partitions():
            return dict(super().beginning_offsets(partitions, timeout_ms))

    def end_offsets(self, partitions: Any, timeout_ms: int | None = None) -> dict[Any, int]:
        """As `beginning_offsets`."""
        with _known_partitions():
            return dict(super().end_offsets(partitions, timeout_ms))

    def read_up_to(self, partition: Any) -> int | None:
        """The offset behind all that `poll` has given or left out (control records, gaps); None before the first fetch.

        Asks no broker. The partition must be assigned, KafkaError otherwise.
        """
        position = (
            self._subscription.assignment[partition].position if self._subscription.is_assigned(partition) else None
        )
        return None if position is None else int(position.offset)


@contextmanager
def _known_partitions() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise UnknownTopicOrPartitionError(f"{error} is not known yet") from None


class FetchedRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What one fetch gave of one partition.

    Positions carry no leader epoch: with it the client, when a topic was deleted and made again, goes on at the new
    topic's end. Without it the position is out of range, and reading begins anew.
    """

    next_fetch_offset: int

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[RawRecord]:
        while True:
            try:
                batch = records.next_batch()
            except Exception as error:  # noqa: BLE001 - whatever is in the way, the records behind it are wanted
                self.next_fetch_offset += 1
                yield self._broken(b"", error, self.next_fetch_offset - 1, self.next_fetch_offset)
                break
            if batch is None:
                break
            following = _following(records)
            yield from self._records(batch, max(self.next_fetch_offset, _behind(batch, following)), following)
        self.drain()

    def _records(self, batch: Any, behind: int, following: int | None) -> Iterator[RawRecord]:
        """All that is in a batch; at the end the next fetch is for `behind`, the offset behind it.

        Before `following`, where the next batch begins.

        Kafka keeps the last offset of a batch, also when its last records were compacted away.
        """
        raw = bytes(batch._buffer)
        self.bytes_read += len(raw)
        try:
            for record in self._decoded(batch, (behind if following is None else following) - 1):
                self.next_fetch_offset = max(self.next_fetch_offset, record.offset + record.covers)
                yield record
        except Exception as error:  # noqa: BLE001
            first = max(batch.base_offset, self.next_fetch_offset)
            self.next_fetch_offset = behind
            if first < behind:
                yield self._broken(raw, error, first, behind, _time_ms(batch))
        self.next_fetch_offset = behind

    def _decoded(self, batch: Any, last: int) -> Iterator[RawRecord]:
        """All that is in a batch, up to the offset `last`."""
        if not batch.validate_crc():
            raise ValueError("the checksum does not fit")
        if batch.magic < 2:
            return self._old_records(batch)
        if self._is_left_out(batch):
            return iter(())
        data = decompressed(batch.compression_type, bytes(batch._buffer[batch._pos :]), _MOST_BATCH_BYTES)
        own = max(batch.last_offset, batch.base_offset + batch.records_count - 1)
        return self._new_records(batch, data, min(last, own))

    def _is_left_out(self, batch: Any) -> bool:
        """Control batches, and batches of transactions that were aborted."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _new_records(self, batch: Any, data: bytes, last: int) -> Iterator[RawRecord]:
        """Of message format 2. Every record says its length, so a broken one can be stepped over.

        One that claims an offset which leaves too few for those behind it is broken: they would take the next batch's.
        """
        topic, partition = self.topic_partition
        at, offset = 0, batch.base_offset - 1
        for to_come in reversed(range(batch.records_count)):
            length, start = decode_varint(data, at)
            at = start + length
            if length <= 0 or at > len(data):
                raise ValueError("the batch ends within a record")
            offset += 1
            if offset > last:
                raise ValueError("the batch has more records than offsets")
            try:
                delta_ms, place = decode_varint(data, start + 1)  # behind the attributes, which no version has used
                offset_delta, place = decode_varint(data, place)
                if not offset <= batch.base_offset + offset_delta <= max(offset, last - to_come):
                    raise ValueError(f"the record claims to stand {offset_delta} behind the batch's first")
                offset = batch.base_offset + offset_delta
                key, value, headers = _contents(data, place, at)
            except (ValueError, IndexError) as error:
                yield self._broken(data[start:at], error, offset, offset + 1, _time_ms(batch))
                continue
            time_ms = batch.max_timestamp if batch.timestamp_type else batch.first_timestamp + delta_ms
            yield RawRecord(topic, partition, offset, time_ms, key, value, headers)
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes are left behind the batch's last record")

    def _old_records(self, batch: Any) -> Iterator[RawRecord]:
        """Of message formats 0 and 1, which brokers before Kafka 4 may still hold."""
        topic, partition = self.topic_partition
        for one in batch:
            if not one.validate_crc():
                raise ValueError("the checksum does not fit")
            time_ms = -1 if one.timestamp is None else one.timestamp
            yield RawRecord(topic, partition, one.offset, time_ms, one.key, one.value)

    def _broken(self, raw: bytes, error: Exception, first: int, behind: int, time_ms: int = -1) -> RawRecord:
        topic, partition = self.topic_partition
        why = " ".join(f"{type(error).__name__}: {error}".split())[:_DETAIL_CHARS]
        place = f"offset {first}" if behind == first + 1 else f"offsets {first} to {behind - 1}"
        return RawRecord(
            topic, partition, first, time_ms, None, raw, undecodable=f"{place}: {why}", covers=behind - first
        )


class _Fetcher(Fetcher):  # type: ignore[misc]
    PartitionRecords = FetchedRecords
    _next_partition_records: Any

    def fetched_records(self, *args: Any, **options: Any) -> Any:
        """As the client's own, which puts aside what is left of a fetch when its partition is paused, and takes it up
        again only while no other fetch is in its hands: one that was read to its end counts as such there, for as long as
        there are other partitions to read. Nothing more would be fetched of the partition, resumed or not (decision 0114).
        """
        if not self._next_partition_records:
            self._next_partition_records = None
        return super().fetched_records(*args, **options)

    def _parse_fetched_data(self, completed_fetch: Any) -> Any:
        """A reader of committed records can't come to the high watermark while a transaction is open: its end comes first."""
        found = completed_fetch.partition_data
        if self._isolation_level == IsolationLevel.READ_COMMITTED:
            if found.last_stable_offset >= 0:
                found.high_watermark = min(found.high_watermark, found.last_stable_offset)
            found.aborted_transactions = [*(found.aborted_transactions or ()), *_aborted(found.records or b"")]
        return super()._parse_fetched_data(completed_fetch)


class _Aborted(NamedTuple):
    producer_id: int
    first_offset: int


def _aborted(records: bytes) -> Iterator[_Aborted]:
    """The transactions that end with an abort marker in what was fetched. Kafka lists them, the embedded broker does not."""
    begun: dict[int, int] = {}
    at = 0
    while at + _HEADER.size <= len(records):
        offset, length, _, magic, _, attributes, _, _, _, producer, *_ = _HEADER.unpack_from(records, at)
        behind = at + _LENGTH_ENDS_AT + max(0, length)
        if magic >= 2 and attributes & DefaultRecordBatch.TRANSACTIONAL_MASK:
            if not attributes & DefaultRecordBatch.CONTROL_MASK:
                begun.setdefault(producer, offset)
            elif producer in begun and _is_abort(records[at:behind]):
                yield _Aborted(producer, begun.pop(producer))
            else:
                begun.pop(producer, None)
        at = behind


def _is_abort(control_batch: bytes) -> bool:
    try:
        return bool(next(DefaultRecordBatch(control_batch)).abort)
    except Exception:  # noqa: BLE001 - a marker that can't be read is set aside like any other batch
        return False


def _contents(data: bytes, at: int, end: int) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]:
    """Key, value and headers of a record, which stand between `at` and `end`.

    Names of headers that are not UTF-8 are kept with escapes: other producers' headers are no reason to lose a record.
    """
    key, at = _bytes(data, at, end)
    value, at = _bytes(data, at, end)
    count, at = decode_varint(data, at)
    headers = []
    for _ in range(count):
        name, at = _bytes(data, at, end)
        content, at = _bytes(data, at, end)
        headers.append(((name or b"").decode(errors="backslashreplace"), content or b""))
    if at != end:
        raise ValueError(f"{end - at} bytes are left at the end of the record")
    return key, value, tuple(headers)


def _bytes(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(data, at)
    if length < 0:
        return None, at
    if at + length > end:
        raise ValueError("a field runs over the end of its record")
    return data[at : at + length], at + length


def _following(records: Any) -> int | None:
    """The first offset of the next batch; None behind the last one that was fetched."""
    return int(_FIRST_OFFSET.unpack_from(records._next_slice)[0]) if records.has_next() else None


def _behind(batch: Any, following: int | None) -> int:
    """The offset behind a batch, never beyond the next batch: the number in a damaged one may be anything."""
    # of the older formats the last offset stands in front
    behind: int = batch.next_offset if batch.magic >= 2 else batch.base_offset + 1
    if following is not None:
        return min(behind, following)
    trusted = batch.magic < 2 or batch.records_count == batch.last_offset_delta + 1 or batch.validate_crc()
    return behind if trusted else int(batch.base_offset) + 1


def _time_ms(batch: Any) -> int:
    return int(batch.max_timestamp) if batch.magic >= 2 else -1
