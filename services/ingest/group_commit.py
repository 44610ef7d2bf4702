"""Gathers the writes of many callers into few bank commits: by rows, by bytes, or a moment after the last commit.

A write after a pause is committed at once. While commits follow each other, what comes during one and `wait_s` after it shares
the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from services.bank.records import CommitReport, DocumentWrite
from services.errors import BankUnavailable
from services.ingest.ports import BankRecord
from services.metrics import Metrics
from services.supervision import ServiceThread

__all__ = ["GroupCommit"]


@dataclass(slots=True)
class _Submission:
    records: Sequence[BankRecord]
    rows: int
    n_bytes: int
    done: Future[CommitReport] = field(default_factory=Future)


class GroupCommit:
    """One thread that commits; `submit` may be called from many. `commit` raises BankError with nothing visible, or
    ValueError for a record that does not fit, which then goes to the caller that submitted it, and to no other."""

    def __init__(
        self,
        commit: Callable[[Sequence[BankRecord]], CommitReport],
        max_rows: int,
        max_bytes: int,
        wait_s: float,
        memory_bytes: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._commit = commit
        self._max_rows, self._max_bytes, self._wait_s = max_rows, max_bytes, wait_s
        self._memory_bytes = memory_bytes
        self._changed = threading.Condition()
        self._queue: deque[_Submission] = deque()
        self._ended_s = float("-inf")
        self._in_hand: list[_Submission] = []
        self._closed = False
        self._thread = ServiceThread("bank-commit", self._run, metrics or Metrics(), failed=self._fail)
        self._thread.start()

    def submit(self, records: Sequence[BankRecord]) -> CommitReport:
        """Returns when the records are committed; rows and stale records of a shared commit are told to one caller only."""
        rows = sum(len(one.chunks) if isinstance(one, DocumentWrite) else 1 for one in records)
        submission = _Submission(records, rows, rows * self._memory_bytes)
        with self._changed:
            if self._closed:
                raise BankUnavailable("the bank's writer has been closed")
            self._queue.append(submission)
            self._changed.notify_all()
        return submission.done.result()

    def close(self) -> None:
        """Commits what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            with self._thread.at_work():
                self._store(group)
            self._ended_s = time.monotonic()
            self._thread.worked()

    def _fail(self, error: BaseException) -> None:
        """The callers of the group that was in hand are told."""
        for one in self._in_hand:
            if not one.done.done():
                one.done.set_exception(_for_caller(error))

    def _next(self) -> list[_Submission]:
        """The next group; empty at the end. A submission larger than the limits is a group by itself."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return []
            due_s = self._ended_s + self._wait_s
            self._changed.wait_for(lambda: self._closed or self._is_full(), max(0.0, due_s - time.monotonic()))
            group = [self._queue.popleft()]
            self._in_hand = group
            while self._queue and self._fits([*group, self._queue[0]]):
                group.append(self._queue.popleft())
            return group

    def _is_full(self) -> bool:
        return (len(self._queue) > 1 and not self._fits(self._queue)) or self._at_limit(self._queue)

    def _fits(self, group: Sequence[_Submission] | deque[_Submission]) -> bool:
        rows, n_bytes = sum(one.rows for one in group), sum(one.n_bytes for one in group)
        return rows <= self._max_rows and n_bytes <= self._max_bytes

    def _at_limit(self, group: Sequence[_Submission] | deque[_Submission]) -> bool:
        rows, n_bytes = sum(one.rows for one in group), sum(one.n_bytes for one in group)
        return rows >= self._max_rows or n_bytes >= self._max_bytes

    def _store(self, group: list[_Submission]) -> None:
        try:
            report = self._commit([record for one in group for record in one.records])
        except ValueError as error:
            if len(group) == 1:
                group[0].done.set_exception(error)
                return
            for one in group:
                self._store([one])
        except BaseException as error:  # noqa: BLE001 - it is for the callers, who wait for it
            for one in group:
                one.done.set_exception(_for_caller(error))
        else:
            group[0].done.set_result(report)
            for one in group[1:]:
                one.done.set_result(replace(report, inserted_rows=0, closed_rows=0, stale=0))


def _for_caller(error: BaseException) -> Exception:
    """An error that a caller's own thread outlives: SystemExit and its like end whoever they are raised in."""
    return (
        error if isinstance(error, Exception) else RuntimeError(f"the commit failed: {type(error).__name__}: {error}")
    )
