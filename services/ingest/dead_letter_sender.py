"""Sends dead letters from a thread of its own, and stops the partition of one that can't be sent.

The rest of the stream goes on meanwhile. The record stays unfinished, so nothing behind it is committed and nothing is lost.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from services.errors import RecordError
from services.ingest.inbox import PolledRecord
from services.ingest.ports import DeadLetterSink
from services.metrics import Metrics
from services.supervision import ServiceThread

__all__ = ["DeadLetterSender"]

_log = logging.getLogger(__name__)
_BATCH = 500
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0

Letter = tuple[PolledRecord, RecordError]


class DeadLetterSender:
    """Letters on their way to `sink`; `on_safe` is called with each that the dead-letter topic has acknowledged."""

    def __init__(
        self, sink: DeadLetterSink, on_safe: Callable[[PolledRecord, RecordError], None], metrics: Metrics | None = None
    ) -> None:
        self._sink = sink
        self._on_safe = on_safe
        self._changed = threading.Condition()
        self._waiting: deque[Letter] = deque()
        self._under_way: list[Letter] = []
        self._stopped: dict[int, str] = {}
        self._closed = threading.Event()
        self._thread = ServiceThread("ingest-letters", self._run, metrics or Metrics(), failed=self._put_back)
        self._thread.start()

    def put(self, letters: Iterable[Letter]) -> None:
        """Adds letters; returns at once."""
        with self._changed:
            self._waiting.extend(letters)
            self._changed.notify_all()

    @property
    def pending(self) -> int:
        """Letters that are not safe yet; those of partitions that were taken away are not counted."""
        with self._changed:
            return len(self._under_way) + sum(not taken.ticket.dropped for taken, _ in self._waiting)

    def stopped(self) -> dict[int, str]:
        """{partition: why} of the partitions whose letters can't be sent now."""
        with self._changed:
            return dict(self._stopped)

    def close(self) -> None:
        """Ends the thread; letters that are not safe yet are read again by the next start."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while batch := self._next():
            with self._thread.at_work():
                failed = self._send(batch)
            with self._changed:
                self._waiting.extendleft(reversed(failed))
                self._under_way = []
            self._thread.worked()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if failed else _FIRST_PAUSE_S
            if failed and self._closed.wait(pause_s):
                return

    def _next(self) -> list[Letter]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
            if self._closed.is_set():
                return []
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            batch = [letter for letter in batch if not letter[0].ticket.dropped]
            self._under_way = batch
            if not batch and not self._waiting:
                self._stopped.clear()
        return batch or self._next()

    def _put_back(self, error: BaseException) -> None:
        """A round that failed: which of its letters are safe is not known, so that all are sent again."""
        with self._changed:
            self._waiting.extendleft(reversed(self._under_way))
            self._under_way = []

    def _send(self, batch: list[Letter]) -> list[Letter]:
        """Those that were not acknowledged, and the partitions of which are stopped now."""
        errors = self._sink.send_all([(taken.record, error, taken.epoch) for taken, error in batch])
        failed: list[Letter] = []
        stopped: dict[int, str] = {}
        for letter, problem in zip(batch, errors, strict=True):
            if problem is None:
                self._on_safe(*letter)
            else:
                failed.append(letter)
                stopped[letter[0].record.partition] = str(problem)
        self._note(stopped)
        return failed

    def _note(self, stopped: dict[int, str]) -> None:
        with self._changed:
            for partition in stopped.keys() - self._stopped.keys():
                _log.warning("partition %d is stopped: %s", partition, stopped[partition])
            self._stopped = stopped
