"""One consumer of the document topic: a thread that always polls, and a thread that moves batches into the bank.

The order that makes ingestion effectively once:

1. poll, in a thread of its own, always; pause when too many bytes are in flight, and go on polling
2. decode and validate; what can't be read is for the dead-letter topic
3. split documents into windows and compress them
4. one bank commit for the batch; then the batch's dead letters, each acknowledged
5. note the records as finished
6. commit to Kafka the next offset of the contiguous finished prefix of every partition

A crash anywhere replays records from the last commit of 6. The bank takes a replay for what it is, since its rows
carry epoch, partition and offset, and leaves one row. (A dead letter may then be there twice: same partition and offset.)
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from services.errors import BrokerError, ServiceError
from services.ingest.batch_work import BatchWork, Prepared
from services.ingest.inbox import Inbox, Taken
from services.ingest.offsets import OffsetTracker
from services.ingest.ports import Compress, DeadLetterSink, RecordSource, Write
from services.ingest.retry import Retry
from services.metrics import Metrics
from services.settings import Settings
from services.stream.record import RawRecord

__all__ = ["Consumer", "ConsumerStatus"]

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_POLL_RECORDS = 64
_LAG_EVERY_S = 0.5
_COMMIT_AGAIN_S = 0.5

OpenSource = Callable[[Callable[[set[int]], None]], RecordSource]


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """A consumer now: lag by assigned partition (records), records by outcome, what is in flight, and why it ended.

    `stale` counts the records that the bank already had in the same or a newer version; `measured` numbers the lag.
    """

    running: bool
    failure: ServiceError | None
    lag: dict[int, int]
    measured: int
    outcomes: dict[str, int]
    stale: int
    in_flight_records: int
    in_flight_bytes: int


class Consumer:
    """Runs from `start` to `stop`, or until Kafka, the bank or the compressor fails for longer than `retry_for_s`.

    `open_source` connects to Kafka and gets the callback for rebalances; `open_dead_letters` connects to the
    dead-letter topic; `epoch_of_topic` numbers the topic as it is now. `depth` batches are compressed at once.
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
        self._compress, self._write, self._epoch_of_topic = compress, write, epoch_of_topic
        self._metrics = metrics
        self._depth = depth
        self._stopping = threading.Event()
        self._retry = Retry(retry_for_s, self._stopping.wait)
        self._tracker = OffsetTracker()
        self._inbox = Inbox(settings.ingest.batch_windows, settings.ingest.batch_wait_s)
        self._work: BatchWork | None = None
        self._failure: ServiceError | None = None
        self._connected = threading.Event()
        self._epoch: int | None = None
        self._lag: dict[int, int] = {}
        self._measured = 0
        self._lag_due_s = self._commit_due_s = 0.0
        self._paused = False
        self._worker = threading.Thread(target=self._guarded, args=(self._move_batches,), name="ingest-work")
        self._poller = threading.Thread(target=self._guarded, args=(self._poll_until_stopped,), name="ingest-poll")
        self._worker.daemon = self._poller.daemon = True

    def start(self) -> None:
        """Starts the threads and returns at once."""
        self._poller.start()

    def wait_until_connected(self, timeout_s: float) -> None:
        """Raises what connecting to Kafka failed with; ServiceError when it takes longer than `timeout_s`."""
        if not self._connected.wait(timeout_s):
            raise ServiceError(f"no connection to Kafka topic {self._settings.kafka.topic} after {timeout_s:g} s")
        if self._failure is not None:
            raise self._failure

    def status(self) -> ConsumerStatus:
        """What it does now; `lag` is at most a second or so old."""
        return ConsumerStatus(
            running=self._poller.is_alive() and not self._stopping.is_set(),
            failure=self._failure,
            lag=dict(self._lag),
            measured=self._measured,
            outcomes=dict(self._work.outcomes) if self._work else {},
            stale=self._work.stale if self._work else 0,
            in_flight_records=self._inbox.in_flight_records,
            in_flight_bytes=self._inbox.in_flight_bytes,
        )

    def stop(self, timeout_s: float) -> bool:
        """Stops polling, finishes the batches that were begun, commits their offsets and leaves the group.

        Records that wait for their batch are left for the next start. False when `timeout_s` was not enough: then
        what is unfinished is replayed by the next start.
        """
        deadline = time.monotonic() + timeout_s
        self._stopping.set()
        self._inbox.close()
        if self._poller.ident is not None:
            self._poller.join(max(0.0, deadline - time.monotonic()))
        return not self._poller.is_alive()

    def _guarded(self, run: Callable[[], None]) -> None:
        """Runs one thread; what ends it ends the consumer, and is kept."""
        try:
            run()
        except ServiceError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - an unknown error must stop the stream, not a thread alone
            _log.exception("ingest of %s failed", self._settings.kafka.topic)
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
            self._work = BatchWork(
                self._settings.kafka, self._compress, self._write, dead_letters, self._metrics, self._retry
            )
            self._worker.start()
            self._connected.set()
            try:
                while not self._stopping.is_set():
                    self._poll(source)
            except ServiceError as error:
                self._fail(error)
            self._drain(source)

    def _drain(self, source: RecordSource) -> None:
        """Keeps the membership until the batches that were begun are finished, and commits them."""
        with contextlib.suppress(BrokerError):
            source.pause()
            while self._worker.is_alive():
                source.poll(_POLL_S, 1)
                self._worker.join(0.01)
        self._worker.join()
        self._commit(source, last=True)

    def _poll(self, source: RecordSource) -> None:
        records = source.poll(_POLL_S, _POLL_RECORDS)
        self._inbox.put(self._take(record) for record in records)
        self._forget_lost_partitions(source)
        self._pause_or_resume(source)
        self._commit(source)
        if time.monotonic() >= self._lag_due_s:
            self._measure(source)

    def _take(self, record: RawRecord) -> Taken:
        epoch = self._epoch
        if epoch is None or self._tracker.rewinds(record.partition, record.offset):
            epoch = self._epoch = self._retry(self._epoch_of_topic)
        return Taken(record, self._tracker.start(record.partition, record.offset), epoch)

    def _note_rebalance(self, partitions: set[int]) -> None:
        """Runs on the Kafka client's thread. What comes after a rebalance may be a topic that was made anew.

        It does not say that the partitions are gone: the client calls it for all of them at every rebalance, and
        reads on where it stood in those that it keeps. Their records must stay under way, or they would be lost.
        """
        self._epoch = None

    def _forget_lost_partitions(self, source: RecordSource) -> None:
        """Those that are not assigned now: should they come back, they begin at the committed offset."""
        lost = self._tracker.partitions() - source.assigned()
        self._tracker.drop(lost)

    def _pause_or_resume(self, source: RecordSource) -> None:
        in_flight, budget = self._inbox.in_flight_bytes, self._settings.ingest.in_flight_bytes
        self._metrics.gauge("cmt_ingest_in_flight_bytes", in_flight)
        if not self._paused and in_flight > budget:
            source.pause()
            self._paused = True
        elif self._paused and in_flight < budget / 2:
            source.resume()
            self._paused = False

    def _commit(self, source: RecordSource, last: bool = False) -> None:
        """Commits what has been finished since the last time.

        A group that has moved on is no error: the partitions are about to be revoked, or the next try succeeds. A
        broker that is away is waited for, while polling goes on: nothing is lost, and its return commits it all.
        """
        mine = source.assigned()
        offsets = {partition: offset for partition, offset in self._tracker.committable().items() if partition in mine}
        if not offsets or (not last and time.monotonic() < self._commit_due_s):
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
        else:
            self._commit_due_s = time.monotonic() + _COMMIT_AGAIN_S

    def _measure(self, source: RecordSource) -> None:
        lags = source.lag()
        for partition, lag in (dict.fromkeys(self._lag, 0) | lags).items():  # 0 for those that others read now
            self._metrics.gauge("cmt_ingest_lag_records", lag, partition=str(partition))
        self._lag = lags
        self._measured += 1
        self._lag_due_s = time.monotonic() + (_LAG_EVERY_S)

    # The work thread: 2 to 5.

    def _move_batches(self) -> None:
        """Compresses up to `depth` batches at once and commits them one after the other, in their order."""
        assert self._work is not None
        begun: deque[tuple[list[Taken], Future[list[Prepared]]]] = deque()
        with ThreadPoolExecutor(self._depth, thread_name_prefix="ingest-compress") as pool:
            try:
                while not self._stopping.is_set() or begun:
                    if len(begun) < self._depth and (batch := self._next_batch(full_only=bool(begun))):
                        begun.append((batch, pool.submit(self._work.prepare, batch)))
                    elif begun:
                        self._finish(*begun.popleft())
            except BaseException:
                self._stopping.set()  # ends the retries of the batches that the pool still waits for
                raise

    def _next_batch(self, full_only: bool) -> list[Taken]:
        """A batch without the records of partitions that were taken away meanwhile: their new owner reads them."""
        batch = self._inbox.take(_POLL_S, full_only)
        dropped = [taken for taken in batch if taken.ticket.dropped]
        self._inbox.release(dropped)
        return [taken for taken in batch if not taken.ticket.dropped]

    def _finish(self, batch: list[Taken], prepared: Future[list[Prepared]]) -> None:
        assert self._work is not None
        outcome = prepared.result()
        self._work.store(outcome)
        for taken in batch:
            self._tracker.finish(taken.ticket)
        self._inbox.release(batch)
        value_bytes = sum(len(one.taken.record.value or b"") for one in outcome if one.windows)
        self._inbox.learn(value_bytes, sum(one.windows for one in outcome))


def _closed(connection: RecordSource | DeadLetterSink) -> None:
    """Closes at the end, where a broker that is gone is no error any more: all that matters was committed."""
    with contextlib.suppress(BrokerError):
        connection.close()
