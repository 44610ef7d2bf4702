"""Reads document records from Kafka, as a member of a group or from partitions that it is told.

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

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from kafka import TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from kafka.structs import OffsetAndMetadata

from services.settings import KafkaSettings
from services.stream.connection import translated_errors
from services.stream.reading import open_consumer
from services.stream.record import RawRecord
from services.stream.shape import RecordShape
from services.stream.topics import ensure_topics

__all__ = ["AssignedSource", "KafkaSource"]

log = logging.getLogger(__name__)

_GROUP_MOVED_ON = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)
_LAG_TIMEOUT_MS = 2000
# Partitions of a member that died are read again after this long; the heart beats in a thread of the client. The
# embedded broker lets a new group wait for half of this before it assigns anything (seen), Kafka does not.
_SESSION_TIMEOUT_MS = 15_000
_EMBEDDED_SESSION_TIMEOUT_MS = 6_000


class _Source:
    """What both kinds of sources share; `self._consumer` is a kafka-python consumer with a group id.

    `poll` belongs to one thread; the other methods may be called from a second one.
    """

    def __init__(self, settings: KafkaSettings, bootstrap: str, **options: Any) -> None:
        RecordShape.of(settings)  # settings that can't be used are told before anything is read
        ensure_topics(settings, bootstrap)
        self._topic = settings.topic
        self._timeout_ms = int(settings.connect_timeout_s * 1000)
        self._paused = False
        self._held: set[int] = set()
        self._committed: dict[int, int] = {}
        self._consumer = open_consumer(settings, bootstrap, group_id=settings.group_id, **options)

    def poll(self, timeout_s: float, max_records: int) -> list[RawRecord]:
        """Up to `max_records` records, in offset order within a partition; empty after `timeout_s` seconds without any.

        While no broker answers it keeps trying and returns nothing. Raises BrokerError for what waiting can't heal.
        """
        with translated_errors(f"Kafka topic {self._topic}"):
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        return [record for records in polled.values() for record in records]

    def pause(self) -> None:
        """Stops fetching from all partitions, those assigned later included; `poll` keeps the membership alive."""
        self._paused = True
        self._each(self._consumer.pause, self._consumer.assignment())

    def resume(self) -> None:
        """Fetches again where `pause` stopped; no record is lost or repeated."""
        self._paused = False
        self._each(self._consumer.resume, [tp for tp in self._consumer.paused() if tp.partition not in self._held])

    def hold(self, partitions: set[int]) -> None:
        """Stops fetching from these partitions, until a later call leaves them out; `resume` does not."""
        freed, self._held = self._held - partitions, set(partitions)
        mine = self.assigned()
        self._each(self._consumer.pause, self._parts(partitions & mine))
        if not self._paused:
            self._each(self._consumer.resume, self._parts(freed & mine))

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

    def read_up_to(self) -> dict[int, int]:
        """{partition: offset behind all that `poll` gave or left out}: records, control records, and gaps.

        Partitions whose first offset is not known yet are left out. Asks no broker; belongs to the thread that polls.
        """
        found = {tp.partition: self._consumer.read_up_to(tp) for tp in self._consumer.assignment()}
        return {partition: offset for partition, offset in found.items() if offset is not None}

    def close(self) -> None:
        """Leaves the group, so that its partitions go to others at once; repeated calls are fine."""
        with translated_errors(f"Kafka topic {self._topic}"):
            self._consumer.close(autocommit=False, timeout_ms=self._timeout_ms)

    def __enter__(self) -> Self:
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

    def _pause_new(self, partitions: Iterable[Any]) -> None:
        self._each(self._consumer.pause, [tp for tp in partitions if self._paused or tp.partition in self._held])

    @staticmethod
    def _each(action: Callable[[Any], None], partitions: Iterable[Any]) -> None:
        """A partition that the group takes away at this moment needs neither pause nor resume."""
        for tp in list(partitions):
            with contextlib.suppress(KafkaError):
                action(tp)

    def _parts(self, partitions: Iterable[int]) -> list[Any]:
        return [TopicPartition(self._topic, partition) for partition in sorted(partitions)]


class KafkaSource(_Source):
    """One member of the consumer group that reads `settings.topic`; the group decides who reads what.

    The assignment is cooperative and sticky. `member` (static membership, not with the embedded broker) is a name that stays
    the same when this member is started again: then the group waits for it instead of moving its partitions.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        bootstrap: str,
        on_revoked: Callable[[set[int]], None] | None = None,
        member: str | None = None,
    ) -> None:
        """Connects and subscribes; the partitions arrive during the first polls.

        `on_revoked` gets the partitions that a rebalance takes away, also at `close`. An eager rebalance takes all of
        them and gives most back, with their positions kept: what is in flight is lost only once a partition has left
        `assigned()`. It runs on the client's network thread: it must return at once and must not call this object.

        Raises BrokerUnreachable when nothing answers within `connect_timeout_s`, TopicMissing when the topic does not
        exist and may not be created, SettingsError when the settings describe no shape of records.
        """
        super().__init__(
            settings,
            bootstrap,
            session_timeout_ms=_SESSION_TIMEOUT_MS if settings.bootstrap_servers else _EMBEDDED_SESSION_TIMEOUT_MS,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            # the embedded broker forms a group anew without telling its leader where a static member joins again (seen: the
            # others then waited for ever)
            group_instance_id=f"{socket.gethostname()}-{member}" if member and settings.bootstrap_servers else None,
        )
        with translated_errors(f"Kafka topic {self._topic}"):
            # a member that joins before it knows the topic is given nothing, joins again, and may wait for ever (seen)
            self._consumer.partitions_for_topic(self._topic)
        self._consumer.subscribe([self._topic], listener=_Listener(self._pause_new, self._revoked, on_revoked))

    def assign(self, partitions: set[int], from_beginning: bool = False) -> None:
        """Nothing: the group decides."""

    def _revoked(self, partitions: set[int]) -> None:
        for partition in partitions:
            self._committed.pop(partition, None)


class AssignedSource(_Source):
    """Reads the partitions that `assign` was last called with, none at first; `on_revoked` is never called.

    Offsets are committed under the group's id, where lag tools see them, though the group has no members. Raises what
    KafkaSource raises.
    """

    def poll(self, timeout_s: float, max_records: int) -> list[RawRecord]:
        """As the group's member does; the client itself refuses to poll without partitions."""
        if not self.assigned():
            time.sleep(timeout_s)
            return []
        return super().poll(timeout_s, max_records)

    def assign(self, partitions: set[int], from_beginning: bool = False) -> None:
        """Reads these partitions from their committed offsets on; those that it reads already go on where they are.

        `from_beginning` reads those that it did not read from the earliest record on, whatever is committed.
        """
        old = self.assigned()
        if partitions == old:
            return
        with translated_errors(f"Kafka topic {self._topic}"):
            self._consumer.assign(self._parts(partitions))
            if from_beginning and partitions - old:
                self._consumer.seek_to_beginning(*self._parts(partitions - old))
        for partition in old - partitions:
            self._committed.pop(partition, None)
        self._pause_new(self._consumer.assignment())


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
