"""Tracks which polled records are finished, and up to where each partition's offset may be committed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["OffsetTracker", "Ticket"]


@dataclass(slots=True, eq=False)
class Ticket:
    """One record on its way, or what stands for several up to `offset`.

    `dropped` once its partition was taken away, so that it is not worth finishing.
    """

    partition: int
    offset: int
    timestamp_ms: int = -1
    done: bool = False
    dropped: bool = False


@dataclass(slots=True)
class _Lane:
    """The records of one partition since it was assigned, in offset order; `read_up_to` is behind all that was polled."""

    open: deque[Ticket] = field(default_factory=deque)
    last: int = -1
    next: int | None = None
    read_up_to: int = 0
    committed: int | None = None

    @property
    def behind(self) -> int:
        """The least offset that the next record may have."""
        return max(self.last + 1, self.read_up_to)

    def committable(self) -> int | None:
        """Without unfinished records, also what stands behind the last one is done: control records and gaps."""
        if self.open or self.read_up_to <= self.last + 1:
            return self.next
        return self.read_up_to


class OffsetTracker:
    """The contiguous finished prefix of every partition; thread-safe.

    Offsets may have gaps (compacted topics, transaction markers): contiguous means that no polled record before it is
    unfinished, and `reached` tells of gaps that no record follows. A ticket of a partition that was dropped meanwhile
    changes nothing, also when the partition is back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[int, _Lane] = {}

    def rewinds(self, partition: int, offset: int) -> bool:
        """Whether this offset is not beyond the last one: the topic was made anew, or its broker lost its end."""
        with self._lock:
            lane = self._lanes.get(partition)
            return lane is not None and offset < lane.behind

    def start(self, partition: int, offset: int, timestamp_ms: int = -1) -> Ticket:
        """Notes a polled record; one that rewinds its partition drops what was under way there."""
        ticket = Ticket(partition, offset, timestamp_ms)
        with self._lock:
            lane = self._lanes.get(partition)
            if lane is not None and offset < lane.behind:
                self._drop(partition)
            lane = self._lanes.setdefault(partition, _Lane())
            lane.open.append(ticket)
            lane.last = offset
        return ticket

    def reached(self, offsets: Mapping[int, int]) -> None:
        """Notes {partition: offset} behind everything that was polled, once all polled records have been started.

        One that lies before an earlier one counts for nothing: the topic was made anew, and only its records tell.
        """
        with self._lock:
            for partition, offset in offsets.items():
                lane = self._lanes.setdefault(partition, _Lane())
                lane.read_up_to = max(lane.read_up_to, offset)

    def finish(self, ticket: Ticket) -> None:
        """Notes that a record is in the bank or in the dead-letter topic."""
        self.finish_all((ticket,))

    def finish_all(self, tickets: Iterable[Ticket]) -> None:
        """Notes several records at once."""
        with self._lock:
            for ticket in tickets:
                ticket.done = True
                if ticket.dropped:
                    continue
                lane = self._lanes[ticket.partition]
                while lane.open and lane.open[0].done:
                    lane.next = lane.open.popleft().offset + 1

    def oldest_ms(self) -> dict[int, int]:
        """{partition: timestamp of the oldest unfinished record, in milliseconds since 1970}; without those that have none."""
        with self._lock:
            return {partition: lane.open[0].timestamp_ms for partition, lane in self._lanes.items() if lane.open}

    def partitions(self) -> set[int]:
        """The partitions that were polled, dropped ones left out."""
        with self._lock:
            return set(self._lanes)

    def drop(self, partitions: Iterable[int]) -> None:
        """Forgets partitions that were taken away; their new owner reads on from what was committed."""
        with self._lock:
            for partition in partitions:
                self._drop(partition)

    def committable(self) -> dict[int, int]:
        """{partition: NEXT offset to read} where the finished prefix has grown since it was last committed."""
        with self._lock:
            ends = {partition: lane.committable() for partition, lane in self._lanes.items()}
            return {
                partition: end
                for partition, end in ends.items()
                if end is not None and end != self._lanes[partition].committed
            }

    def committed(self, offsets: Mapping[int, int]) -> None:
        """Notes that the broker has these offsets, as `committable` gave them."""
        with self._lock:
            for partition, offset in offsets.items():
                if partition in self._lanes:
                    self._lanes[partition].committed = offset

    @property
    def unfinished(self) -> int:
        """Records that were polled and are not finished, dropped ones left out."""
        with self._lock:
            return sum(not ticket.done for lane in self._lanes.values() for ticket in lane.open)

    def _drop(self, partition: int) -> None:
        lane = self._lanes.pop(partition, None)
        for ticket in lane.open if lane is not None else ():
            ticket.dropped = True
