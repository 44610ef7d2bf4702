"""The queue between polling and compressing: it counts the bytes in flight, and hands out batches of documents of like size."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.ingest.offsets import Ticket
from services.stream.record import RawRecord

__all__ = ["Inbox", "PolledRecord"]

_RECORD_OVERHEAD_BYTES = 512  # so that a million tombstones weigh something, too
_BYTES_PER_WINDOW = 1000.0  # of JSON; the first guess, before any document was split
_MEMORY = 0.9
_LARGE_SHARE = 8  # a document is large from an eighth of a batch's windows on


@dataclass(frozen=True, slots=True, eq=False)
class PolledRecord:
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
    """Records between poll and finish; batches are cut by an estimate of windows, learned from earlier batches.

    Large documents stand in a lane of their own. `threads` take batches, and one of them takes none of that lane, so that
    small documents go on however many large ones there are.
    """

    def __init__(self, batch_windows: int, batch_wait_s: float, threads: int = 1) -> None:
        self._batch_windows = batch_windows
        self._batch_wait_s = batch_wait_s
        self._most_large = max(1, threads - 1)
        self._changed = threading.Condition()  # its lock is re-entrant
        self._small: deque[PolledRecord] = deque()
        self._large: deque[PolledRecord] = deque()
        self._under_way: dict[
            PolledRecord, bool
        ] = {}  # by a batch's first record: whether it came from the lane of large ones
        self._bytes: Counter[int] = Counter()  # by partition
        self._records = 0
        self._bytes_per_window = _BYTES_PER_WINDOW
        self._closed = False

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of records that were put and not released."""
        with self._changed:
            return self._bytes.total()

    @property
    def bytes_by_partition(self) -> dict[int, int]:
        """The same by partition, without those that have none."""
        with self._changed:
            return {partition: size for partition, size in self._bytes.items() if size}

    @property
    def in_flight_records(self) -> int:
        """Records that were put and not released."""
        with self._changed:
            return self._records

    def put(self, taken: Iterable[PolledRecord]) -> None:
        """Adds records; never blocks, since the poll thread must go on polling."""
        with self._changed:
            for one in taken:
                large = self._windows(one) > max(1.0, self._batch_windows / _LARGE_SHARE)
                (self._large if large else self._small).append(one)
                self._bytes[one.record.partition] += one.n_bytes
                self._records += 1
            self._changed.notify_all()

    def take(self, idle_s: float) -> list[PolledRecord]:
        """The next batch: full, or all there is while no other batch is under way, or what came within `batch_wait_s`.

        Empty when no record came for `idle_s` seconds, when the inbox is closed, or when another thread was faster. A
        record counts at least as one window. Every batch has to be released.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._lane() or self._closed, idle_s) or self._closed:
                return []
            due_s = self._lane()[0].arrived_s + self._batch_wait_s
            self._changed.wait_for(self._may_go, max(0.0, due_s - time.monotonic()))
            lane = self._lane()
            return self._cut(lane) if lane and not self._closed else []

    def release(self, batch: Sequence[PolledRecord]) -> None:
        """Takes a batch out of what is under way, and its records out of the count of bytes in flight."""
        with self._changed:
            self._forget(batch)
            self._under_way.pop(batch[0], None)
            self._changed.notify_all()

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
            for lane in (self._small, self._large):
                self._forget(lane)
                lane.clear()
            self._changed.notify_all()

    def _forget(self, taken: Iterable[PolledRecord]) -> None:
        for one in taken:
            self._bytes[one.record.partition] -= one.n_bytes
            self._records -= 1

    def _windows(self, taken: PolledRecord) -> float:
        return max(1.0, len(taken.record.value or b"") / self._bytes_per_window)

    def _lane(self) -> deque[PolledRecord]:
        """Where the next batch comes from: the lane that has waited longest, of those that may give one; else an empty one."""
        if not self._large or sum(self._under_way.values()) >= self._most_large:
            return self._small
        first = not self._small or self._large[0].arrived_s < self._small[0].arrived_s
        return self._large if first else self._small

    def _may_go(self) -> bool:
        return self._closed or not self._under_way or not (lane := self._lane()) or self._is_full(lane)

    def _is_full(self, lane: Iterable[PolledRecord]) -> bool:
        total = 0.0
        for taken in lane:
            total += self._windows(taken)
            if total >= self._batch_windows:
                return True
        return False

    def _cut(self, lane: deque[PolledRecord]) -> list[PolledRecord]:
        batch = [lane.popleft()]
        total = self._windows(batch[0])
        while lane and total + self._windows(lane[0]) <= self._batch_windows:
            batch.append(lane.popleft())
            total += self._windows(batch[-1])
        self._under_way[batch[0]] = lane is self._large
        return batch
