"""One consumer of the document topic: a thread that always polls, and threads that move batches into the bank.

The order that makes ingestion effectively once:

1. poll, in a thread of its own, always; pause when too many bytes are in flight, and go on polling
2. decode and validate; what can't be read is for the dead-letter topic, whatever error says so
3. split documents into windows and compress them
4. one bank commit, which the bank's writer shares with other batches
5. note the records as finished; a dead letter once the dead-letter topic has acknowledged it
6. commit to Kafka the next offset of the contiguous finished prefix of every partition, gaps behind it included

A crash anywhere replays records from the last commit of 6. The bank takes a replay for what it is, since its rows
carry epoch, partition and offset, and leaves one row. (A dead letter may then be there twice, with the same partition
and offset in its headers: its readers count it once.) A dead letter that can't be sent stops its partition, no other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from services.errors import BrokerError, RecordError, ServiceError
from services.ingest.batch_work import BatchWork
from services.ingest.dead_letter_sender import DeadLetterSender
from services.ingest.inbox import Inbox, PolledRecord
from services.ingest.offsets import OffsetTracker
from services.ingest.ports import Compress, DeadLetterSink, RecordSource, Write
from services.ingest.retry import Retry
from services.metrics import Metrics
from services.settings import Settings
from services.stream.record import RawRecord
from services.supervision import STALLED_AFTER_S, ServiceThread

__all__ = ["Consumer", "ConsumerStatus"]

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_POLL_RECORDS = 500
_FIRST_RECORD_BYTES = 4096.0
_LAG_EVERY_S = 0.5
_COMMIT_EVERY_S = 0.1
_COMMIT_AGAIN_S = 0.5
_MOST_SHARES = 8  # of the bytes in flight: with more partitions each may still fill an eighth

OpenSource = Callable[[Callable[[set[int]], None]], RecordSource]


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """A consumer now: lag by assigned partition (records), records by outcome, what is in flight, and why it ended.

    `stale` counts the records that the bank already had in the same or a newer version; `measured` numbers the lag;
    `incarnation` changes when the process is started again; `stopped` says why a partition can't go on.
    """

    running: bool
    failure: ServiceError | None
    lag: dict[int, int]
    measured: int
    outcomes: dict[str, int]
    stale: int
    in_flight_records: int
    in_flight_bytes: int
    incarnation: str = ""
    assigned: frozenset[int] = frozenset()
    wanted: frozenset[int] | None = None
    topic_id: str = ""
    stopped: dict[int, str] = field(default_factory=dict)


class Consumer:
    """Runs from `start` to `stop`, or until Kafka, the bank or the compressor fails for longer than `retry_for_s`.

    `open_source` connects to Kafka and gets the callback for rebalances; `open_dead_letters` connects to the
    dead-letter topic; `epoch_of_topic` numbers the topic as it is now. `depth` batches are under way at once.
    """

    def __init__(
        self,
        settings: Settings,
        open_source: OpenSource,
        open_dead_letters: Callable[[], DeadLetterSink],
        compress: Compress,
        write: Write,
        epoch_of_topic: Callable[[], int],
        metrics: Metrics,
        *,
        depth: int = 2,
        retry_for_s: float = 30.0,
    ) -> None:
        self._settings = settings
        self._open_source, self._open_dead_letters = open_source, open_dead_letters
        self._epoch_of_topic = epoch_of_topic
        self._metrics = metrics
        self._stopping = threading.Event()
        self._retry = Retry(retry_for_s, self._stopping.wait, lambda: metrics.count("cmt_ingest_retries_total"))
        self._tracker = OffsetTracker()
        self._inbox = Inbox(settings.ingest.batch_windows, settings.ingest.batch_wait_s, depth)
        self._work = BatchWork(settings.kafka, compress, write, metrics, self._retry)
        self._letters: DeadLetterSender | None = None
        self._failure: ServiceError | None = None
        self._connected = threading.Event()
        self._epoch: int | None = None
        self._lag: dict[int, int] = {}
        self._measured = 0
        self._lag_due_s = self._commit_due_s = 0.0
        self._paused = False
        self._record_bytes = _FIRST_RECORD_BYTES
        self._held: set[int] = set()
        self._incarnation = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._wanted: set[int] | None = None
        self._topic_id = self._topic_read = ""
        self._assigned: set[int] = set()
        self._workers = [self._thread("ingest-work", self._move_batches) for _ in range(depth)]
        self._poller = self._thread("ingest-poll", self._poll_until_stopped)
        metrics.gauge("cmt_ingest_stopped_partitions", 0)
        metrics.count("cmt_ingest_retries_total", 0)

    def start(self) -> None:
        """Starts the threads and returns at once."""
        self._poller.start()

    def wait_until_connected(self, timeout_s: float) -> None:
        """Raises what connecting to Kafka failed with; ServiceError when it takes longer than `timeout_s`."""
        if not self._connected.wait(timeout_s):
            raise ServiceError(f"no connection to Kafka topic {self._settings.kafka.topic} after {timeout_s:g} s")
        if self._failure is not None:
            raise self._failure

    def assign(self, partitions: Iterable[int], topic_id: str = "") -> None:
        """Reads these partitions from now on; another `topic_id` means that the topic was made anew meanwhile."""
        with self._lock:
            self._wanted, self._topic_id = set(partitions), topic_id

    def status(self) -> ConsumerStatus:
        """What it does now; `lag` is at most a second or so old."""
        return ConsumerStatus(
            running=self._poller.is_alive() and not self._stopping.is_set(),
            failure=self._failure,
            lag=dict(self._lag),
            measured=self._measured,
            outcomes=dict(self._work.outcomes),
            stale=self._work.stale,
            in_flight_records=self._inbox.in_flight_records + (self._letters.pending if self._letters else 0),
            in_flight_bytes=self._inbox.in_flight_bytes,
            incarnation=self._incarnation,
            assigned=frozenset(self._assigned),
            wanted=None if self._wanted is None else frozenset(self._wanted),
            topic_id=self._topic_read,
            stopped=self._letters.stopped() if self._letters else {},
        )

    def stop(self, timeout_s: float) -> bool:
        """Stops polling, finishes the batches that were begun, commits their offsets and leaves the group.

        Records that wait for their batch are left for the next start. False when `timeout_s` was not enough: then
        what is unfinished is replayed by the next start.
        """
        deadline = time.monotonic() + timeout_s
        self._stopping.set()
        self._inbox.close()
        return self._poller.join(max(0.0, deadline - time.monotonic()))

    def _thread(self, name: str, work: Callable[[], None]) -> ServiceThread:
        """One thread of it; what ends it ends the consumer, and is kept."""

        def run() -> None:
            try:
                work()
            except ServiceError as error:
                self._fail(error)

        limit_s = max(STALLED_AFTER_S, 2 * self._settings.ingest.retry_for_s)
        return ServiceThread(name, run, self._metrics, failed=self._crashed, most_failures=1, stalled_after_s=limit_s)

    def _crashed(self, error: BaseException) -> None:
        """An unknown error must stop the stream, not a thread alone."""
        _log.error("ingest of %s failed", self._settings.kafka.topic, exc_info=error)
        self._fail(ServiceError(f"ingest failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))

    def _fail(self, error: ServiceError) -> None:
        self._failure = self._failure or error
        self._stopping.set()
        self._inbox.close()
        self._connected.set()

    # The poll thread: 1 and 6.

    def _poll_until_stopped(self) -> None:
        with contextlib.ExitStack() as stack:
            source = self._retry(lambda: self._open_source(self._note_rebalance))
            stack.callback(_closed, source)
            dead_letters = self._retry(self._open_dead_letters)
            stack.callback(_closed, dead_letters)
            self._letters = DeadLetterSender(dead_letters, self._letter_is_safe, self._metrics)
            stack.callback(self._letters.close)
            for worker in self._workers:
                worker.start()
            self._connected.set()
            try:
                while not self._stopping.is_set():
                    with self._poller.at_work():
                        self._poll(source)
            except ServiceError as error:
                self._fail(error)
            self._drain(source)

    def _drain(self, source: RecordSource) -> None:
        """Keeps the membership until the batches and letters that were begun are finished, and commits them."""
        with contextlib.suppress(BrokerError):
            source.pause()
            while any(worker.is_alive() for worker in self._workers) or self._letters_are_moving():
                source.poll(_POLL_S, 1)
                self._commit(source)
                time.sleep(0.01)
        for worker in self._workers:
            worker.join()
        self._commit(source, last=True)

    def _letters_are_moving(self) -> bool:
        return self._letters is not None and self._letters.pending > 0 and not self._letters.stopped()

    def _poll(self, source: RecordSource) -> None:
        self._take_assignment(source)
        records = source.poll(_POLL_S, self._poll_records())
        taken = [self._take(record) for record in records]
        self._tracker.reached(source.read_up_to())
        self._inbox.put(taken)
        if taken:
            self._record_bytes = sum(one.n_bytes for one in taken) / len(taken)
        self._assigned = source.assigned()
        self._forget_lost_partitions(self._assigned)
        self._pause_or_resume(source)
        self._commit(source)
        if time.monotonic() >= self._lag_due_s:
            self._measure(source)

    def _poll_records(self) -> int:
        """So many that they fit the budget, if they are of the size of the last ones, and half a partition's share."""
        room = min(self._settings.ingest.in_flight_bytes - self._inbox.in_flight_bytes, self._share() / 2)
        return max(1, min(_POLL_RECORDS, int(room / self._record_bytes)))

    def _take_assignment(self, source: RecordSource) -> None:
        """What `assign` was last called with; finished records of a partition that goes away are committed before."""
        with self._lock:
            wanted, topic_id = self._wanted, self._topic_id
        if wanted is None or (wanted == source.assigned() and topic_id == self._topic_read):
            return
        # What was read of a topic that was made anew, before that was known, counted from where the old one had been read
        # to, and so does what was committed for it: nothing more is committed, and it is read from its first record.
        anew = bool(self._topic_read and topic_id and topic_id != self._topic_read)
        if anew:
            self._tracker.drop(self._tracker.partitions())
        else:
            self._commit(source, last=True)
        if topic_id != self._topic_read and source.assigned():
            source.assign(set())
        self._epoch, self._topic_read = None, topic_id
        source.assign(wanted, from_beginning=anew)
        self._forget_lost_partitions(source.assigned() if wanted else set())

    def _take(self, record: RawRecord) -> PolledRecord:
        epoch = self._epoch
        if epoch is None or self._tracker.rewinds(record.partition, record.offset):
            epoch = self._epoch = self._retry(self._epoch_of_topic)
        last = record.offset + record.covers - 1
        return PolledRecord(record, self._tracker.start(record.partition, last, record.timestamp_ms), epoch)

    def _note_rebalance(self, partitions: set[int]) -> None:
        """Runs on the Kafka client's thread. What comes after a rebalance may be a topic that was made anew.

        It does not say that the partitions are gone: the client calls it for all of them at every rebalance, and
        reads on where it stood in those that it keeps. Their records must stay under way, or they would be lost.
        """
        self._epoch = None

    def _forget_lost_partitions(self, assigned: set[int]) -> None:
        """Those that are not assigned now: should they come back, they begin at the committed offset."""
        self._tracker.drop(self._tracker.partitions() - assigned)

    def _pause_or_resume(self, source: RecordSource) -> None:
        in_flight, budget = self._inbox.in_flight_bytes, self._settings.ingest.in_flight_bytes
        self._metrics.gauge("cmt_ingest_in_flight_bytes", in_flight)
        stopped = set(self._letters.stopped()) if self._letters else set()
        self._metrics.gauge("cmt_ingest_stopped_partitions", len(stopped))
        if (held := stopped | self._crowded()) != self._held:
            source.hold(held)
            self._held = held
        if not self._paused and in_flight > budget:
            source.pause()
            self._paused = True
        elif self._paused and in_flight < budget / 2:
            source.resume()
            self._paused = False

    def _crowded(self) -> set[int]:
        """Partitions that fill more than their share of the budget: the rest of it is for the others' records."""
        if len(self._assigned) < 2:
            return set()
        share, sizes = self._share(), self._inbox.bytes_by_partition
        return {one for one, size in sizes.items() if size > (share / 2 if one in self._held else share)}

    def _share(self) -> float:
        """Bytes that a partition may have in flight."""
        return self._settings.ingest.in_flight_bytes / min(max(1, len(self._assigned)), _MOST_SHARES)

    def _commit(self, source: RecordSource, last: bool = False) -> None:
        """Commits what has been finished since the last time.

        A group that has moved on is no error: the partitions are about to be revoked, or the next try succeeds. A
        broker that is away is waited for, while polling goes on: nothing is lost, and its return commits it all.
        """
        if not last and time.monotonic() < self._commit_due_s:
            return
        mine = source.assigned()
        offsets = {partition: offset for partition, offset in self._tracker.committable().items() if partition in mine}
        if not offsets:
            return
        try:
            done = source.commit(offsets)
        except BrokerError as error:
            if not last and not error.retriable:
                raise
            _log.warning("offsets are not committed, their records may be replayed: %s", error)
            done = False
        if done:
            self._tracker.committed(offsets)
        self._commit_due_s = time.monotonic() + (_COMMIT_EVERY_S if done else _COMMIT_AGAIN_S)

    def _measure(self, source: RecordSource) -> None:
        lags, ages = source.lag(), self._tracker.oldest_ms()
        now_ms = time.time() * 1000
        for partition in self._lag.keys() | lags.keys():  # 0 for those that others read now
            age_s = max(0.0, now_ms - ages[partition]) / 1000 if ages.get(partition, 0) > 0 else 0.0
            self._metrics.gauge("cmt_ingest_lag_records", lags.get(partition, 0), partition=str(partition))
            self._metrics.gauge("cmt_ingest_oldest_uncommitted_seconds", age_s, partition=str(partition))
        self._lag = lags
        self._measured += 1
        self._lag_due_s = time.monotonic() + _LAG_EVERY_S

    # The work threads: 2 to 5.

    def _move_batches(self) -> None:
        """One batch after the other; `depth` threads do this at once, so that one compresses while another commits."""
        while not self._stopping.is_set():
            if batch := self._inbox.take(_POLL_S):
                self._move(batch)

    def _move(self, batch: list[PolledRecord]) -> None:
        """Steps 2 to 5, without the records of partitions that were taken away meanwhile: their new owner reads them."""
        try:
            prepared = self._work.prepare([taken for taken in batch if not taken.ticket.dropped])
            letters = self._work.store(prepared)
            assert self._letters is not None
            self._letters.put(letters)
            unsafe = {id(taken) for taken, _ in letters}
            self._tracker.finish_all(one.taken.ticket for one in prepared if id(one.taken) not in unsafe)
        finally:
            self._inbox.release(batch)
        value_bytes = sum(len(one.taken.record.value or b"") for one in prepared if one.windows)
        self._inbox.learn(value_bytes, sum(one.windows for one in prepared))

    def _letter_is_safe(self, taken: PolledRecord, error: RecordError) -> None:
        self._work.count_dead_letter(taken, error)
        self._tracker.finish(taken.ticket)


def _closed(connection: RecordSource | DeadLetterSink) -> None:
    """Closes at the end, where a broker that is gone is no error any more: all that matters was committed."""
    with contextlib.suppress(BrokerError):
        connection.close()
