"""The queue between polling and compressing: it counts the bytes in flight, and hands out batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.ingest.offsets import Ticket
from services.stream.record import RawRecord

__all__ = ["Inbox", "Taken"]

_RECORD_OVERHEAD_BYTES = 512  # so that a million tombstones weigh something, too
_BYTES_PER_WINDOW = 1000.0  # of JSON; the first guess, before any document was split
_MEMORY = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """A polled record with its ticket, the topic's epoch, and the moment (monotonic seconds) of its arrival."""

    record: RawRecord
    ticket: Ticket
    epoch: int
    arrived_s: float = field(default_factory=time.monotonic)

    @property
    def n_bytes(self) -> int:
        """What it counts in the budget of bytes in flight."""
        return len(self.record.key or b"") + len(self.record.value or b"") + _RECORD_OVERHEAD_BYTES


class Inbox:
    """Records between poll and finish; batches are cut by an estimate of windows, learned from earlier batches."""

    def __init__(self, batch_windows: int, batch_wait_s: float) -> None:
        self._batch_windows = batch_windows
        self._batch_wait_s = batch_wait_s
        self._changed = threading.Condition()  # its lock is re-entrant
        self._queue: deque[Taken] = deque()
        self._bytes = 0
        self._records = 0
        self._bytes_per_window = _BYTES_PER_WINDOW
        self._closed = False

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of records that were put and not released."""
        with self._changed:
            return self._bytes

    @property
    def in_flight_records(self) -> int:
        """Records that were put and not released."""
        with self._changed:
            return self._records

    def put(self, taken: Iterable[Taken]) -> None:
        """Adds records; never blocks, since the poll thread must go on polling."""
        with self._changed:
            for one in taken:
                self._queue.append(one)
                self._bytes += one.n_bytes
                self._records += 1
            self._changed.notify_all()

    def take(self, idle_s: float) -> list[Taken]:
        """The next batch: full, or as large as it got `batch_wait_s` after its first record came.

        Empty when no record came for `idle_s` seconds, when the inbox is closed, or when another thread was faster. A
        record counts at least as one window.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._queue or self._closed, idle_s) or self._closed:
                return []
            due_s = self._queue[0].arrived_s + self._batch_wait_s
            self._changed.wait_for(
                lambda: self._closed or not self._queue or self._is_full(), max(0.0, due_s - time.monotonic())
            )
            return [] if self._closed or not self._queue else self._cut()

    def release(self, taken: Iterable[Taken]) -> None:
        """Takes records out of the count of bytes in flight."""
        with self._changed:
            for one in taken:
                self._bytes -= one.n_bytes
                self._records -= 1

    def learn(self, value_bytes: int, windows: int) -> None:
        """Tells how many windows documents of so many bytes of JSON gave."""
        if windows:
            with self._changed:
                seen = max(1.0, value_bytes / windows)
                self._bytes_per_window = _MEMORY * self._bytes_per_window + (1 - _MEMORY) * seen

    def close(self) -> None:
        """Hands out nothing more: what is queued stays uncommitted, and is read again by the next start."""
        with self._changed:
            self._closed = True
            self.release(self._queue)
            self._queue.clear()
            self._changed.notify_all()

    def _windows(self, taken: Taken) -> float:
        return max(1.0, len(taken.record.value or b"") / self._bytes_per_window)

    def _is_full(self) -> bool:
        total = 0.0
        for taken in self._queue:
            total += self._windows(taken)
            if total >= self._batch_windows:
                return True
        return False

    def _cut(self) -> list[Taken]:
        batch = [self._queue.popleft()]
        total = self._windows(batch[0])
        while self._queue and total + self._windows(self._queue[0]) <= self._batch_windows:
            batch.append(self._queue.popleft())
            total += self._windows(batch[-1])
        return batch
