"""Reads document records from Kafka: the only file that imports kafka for reading.

The order that makes ingestion effectively once; this file does 1 and 5, its caller the rest:

1. `poll` in a thread of its own, always; `pause` when too much is in flight, and go on polling
2. decode, compress
3. commit to the bank
4. note the record as done
5. `commit` the next offset of the contiguous done prefix of every partition

A crash before 5 replays records, which the bank absorbs. There is no automatic commit, and a group without offsets
starts at the earliest record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from kafka.structs import OffsetAndMetadata

from services.errors import TopicMissing
from services.settings import KafkaSettings
from services.stream.connection import connect, translated_errors
from services.stream.record import RawRecord, check_field_map
from services.stream.topics import ensure_topics, topic_partitions

__all__ = ["KafkaSource", "read_topic"]

log = logging.getLogger(__name__)

_GROUP_MOVED_ON = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)
_LAG_TIMEOUT_MS = 2000
# Partitions of a member that died are read again after this long; the heart beats in a thread of the client. The
# embedded broker lets a new group wait for half of this before it assigns anything (seen), Kafka does not.
_SESSION_TIMEOUT_MS = 15_000
_EMBEDDED_SESSION_TIMEOUT_MS = 6_000


class KafkaSource:
    """One member of the consumer group that reads `settings.topic`.

    `poll` belongs to one thread; the other methods may be called from a second one.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        bootstrap: str,
        on_revoked: Callable[[set[int]], None] | None = None,
    ) -> None:
        """Connects and subscribes; the partitions arrive during the first polls.

        `on_revoked` gets the partitions that a rebalance takes away, also at `close`. An eager rebalance takes all of
        them and gives most back, with their positions kept: what is in flight is lost only once a partition has left
        `assigned()`. It runs on the client's network thread: it must return at once and must not call this object.

        Raises BrokerUnreachable when nothing answers within `connect_timeout_s`, TopicMissing when the topic does not
        exist and may not be created, SettingsError when the field map names an unknown field.
        """
        check_field_map(settings.field_map)
        ensure_topics(settings, bootstrap)
        self._topic = settings.topic
        self._timeout_ms = int(settings.connect_timeout_s * 1000)
        self._paused = False
        self._committed: dict[int, int] = {}
        self._consumer = connect(
            KafkaConsumer,
            settings,
            bootstrap,
            group_id=settings.group_id,
            session_timeout_ms=_SESSION_TIMEOUT_MS if settings.bootstrap_servers else _EMBEDDED_SESSION_TIMEOUT_MS,
            **_reading(settings),
        )
        self._consumer.subscribe([self._topic], listener=_Listener(self._assigned, self._revoked, on_revoked))

    def poll(self, timeout_s: float, max_records: int) -> list[RawRecord]:
        """Up to `max_records` records, in offset order within a partition; empty after `timeout_s` seconds without any.

        While no broker answers it keeps trying and returns nothing. Raises BrokerError for what waiting can't heal.
        """
        with translated_errors(f"Kafka topic {self._topic}"):
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        return [_raw(record) for records in polled.values() for record in records]

    def pause(self) -> None:
        """Stops fetching from all partitions, those assigned later included; `poll` keeps the membership alive."""
        self._paused = True
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        """Fetches again where `pause` stopped; no record is lost or repeated."""
        self._paused = False
        self._consumer.resume(*self._consumer.paused())

    def commit(self, offsets: Mapping[int, int]) -> bool:
        """Commits {partition: NEXT offset to read}; partitions that are no longer assigned here are left out.

        False when the group has moved on, which is no error: the new owner replays those records. Raises
        BrokerUnreachable or BrokerError when the broker can't take the commit.
        """
        mine = self.assigned()
        wanted = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
            if partition in mine
        }
        if not wanted:
            return not offsets
        try:
            with translated_errors(f"Kafka group of topic {self._topic}"):
                self._consumer.commit(wanted, timeout_ms=self._timeout_ms)
        except Exception as error:
            if isinstance(error.__cause__, _GROUP_MOVED_ON):
                log.info("commit refused, the group has moved on: %s", error)
                return False
            raise
        self._committed.update({partition.partition: offset.offset for partition, offset in wanted.items()})
        return len(wanted) == len(offsets)

    def lag(self) -> dict[int, int]:
        """Records between committed and end offset, by assigned partition.

        The end is the larger of what the last fetch said (stale while paused) and what the broker says now (which some
        brokers report too low). Without an answer within two seconds the last fetch alone counts.
        """
        partitions = [TopicPartition(self._topic, partition) for partition in self.assigned()]
        try:
            ends = self._consumer.end_offsets(partitions, timeout_ms=_LAG_TIMEOUT_MS) if partitions else {}
        except KafkaError:
            ends = {}
        return {tp.partition: max(0, self._end(tp, ends) - self._start(tp)) for tp in partitions}

    def assigned(self) -> set[int]:
        """The partitions that this member reads now."""
        return {tp.partition for tp in self._consumer.assignment()}

    def close(self) -> None:
        """Leaves the group, so that its partitions go to others at once; repeated calls are fine."""
        with translated_errors(f"Kafka topic {self._topic}"):
            self._consumer.close(autocommit=False, timeout_ms=self._timeout_ms)

    def __enter__(self) -> KafkaSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self, tp: Any, ends: Mapping[Any, int]) -> int:
        try:
            highwater = self._consumer.highwater(tp) or 0
        except KafkaError:  # revoked meanwhile
            highwater = 0
        return max(highwater, ends.get(tp, 0))

    def _start(self, tp: Any) -> int:
        """The committed offset; without one the earliest record, where a group without offsets starts."""
        if tp.partition not in self._committed:
            try:
                committed = self._consumer.committed(tp, timeout_ms=_LAG_TIMEOUT_MS)
                if committed is None:
                    return int(self._consumer.beginning_offsets([tp], timeout_ms=_LAG_TIMEOUT_MS).get(tp, 0))
            except KafkaError:
                return 0
            self._committed[tp.partition] = committed
        return self._committed[tp.partition]

    def _assigned(self, partitions: Iterable[Any]) -> None:
        if self._paused:
            self._consumer.pause(*partitions)

    def _revoked(self, partitions: set[int]) -> None:
        for partition in partitions:
            self._committed.pop(partition, None)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    def __init__(
        self,
        assigned: Callable[[Iterable[Any]], None],
        revoked: Callable[[set[int]], None],
        on_revoked: Callable[[set[int]], None] | None,
    ) -> None:
        self._assigned, self._revoked, self._on_revoked = assigned, revoked, on_revoked

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._assigned(assigned)

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        partitions = {tp.partition for tp in revoked}
        self._revoked(partitions)
        if self._on_revoked is not None and partitions:
            self._on_revoked(partitions)


def read_topic(
    settings: KafkaSettings, bootstrap: str, topic: str, max_records: int | None = None, idle_s: float = 1.0
) -> Iterator[RawRecord]:
    """All records of a topic from the earliest to the present end, outside any group; used to look at dead letters.

    Ends after `max_records`, or when nothing came for `idle_s` seconds. Raises TopicMissing, BrokerUnreachable or
    BrokerError.
    """
    count = topic_partitions(settings, bootstrap, topic)
    if not count:
        raise TopicMissing(f"Kafka topic {topic} does not exist at {bootstrap}")
    consumer = connect(KafkaConsumer, settings, bootstrap, **_reading(settings))
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(count)])
        left = max_records
        quiet_since = time.monotonic()
        while left != 0 and time.monotonic() - quiet_since < idle_s:
            with translated_errors(f"Kafka topic {topic}"):
                polled = consumer.poll(timeout_ms=200, max_records=min(500, left or 500))
            for record in (record for records in polled.values() for record in records):
                yield _raw(record)
                left = None if left is None else left - 1
                quiet_since = time.monotonic()
    finally:
        consumer.close(autocommit=False, timeout_ms=int(settings.connect_timeout_s * 1000))


def _reading(settings: KafkaSettings) -> dict[str, Any]:
    return {
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        "max_partition_fetch_bytes": max(2**20, 2 * settings.max_record_bytes),
    }


def _raw(record: Any) -> RawRecord:
    """Bytes only: a deserializer of the client that raises would end polling for good."""
    headers = tuple((name, value or b"") for name, value in record.headers)
    return RawRecord(record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, headers)
