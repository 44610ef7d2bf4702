"""The threads of a service: none ends unseen, whatever its work raises.

Every thread of `services` is a `ServiceThread` (ruff refuses `threading.Thread` elsewhere). Its work is a loop that returns when
it is told to stop. What the work raises, BaseException included (a panic of Rust code is one), is logged, counted in
`cmt_thread_failures_total`, told to the part that owns the thread, and the work is run again.

A thread that hangs can't be told from one that waits for work, unless it says which of both it does: work stands in `at_work`.
What takes longer there than `stalled_after_s` is logged once and shown in `cmt_thread_stalled_seconds`; `stall` tells the owner.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from services.metrics import Metrics

__all__ = ["STALLED_AFTER_S", "ServiceThread"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_LOOK_EVERY_S = 5.0
STALLED_AFTER_S = 300.0
"""Longer than anything one piece of work takes on a slow machine, model and network time limits included."""


class ServiceThread:
    """Runs `work` in a daemon thread, from `start` until it returns.

    `failed` is told what it raised, before it is run again, so that whoever waits for the work is answered. After
    `most_failures` in a row, with no `worked` between them, it is not run again: `trouble` says so, and `given_up` is
    called. None means that it is always run again, from the second time on after a pause that grows to 5 s.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        metrics: Metrics,
        *,
        failed: Callable[[BaseException], None] = lambda error: None,
        given_up: Callable[[], None] = lambda: None,
        most_failures: int | None = None,
        stalled_after_s: float = STALLED_AFTER_S,
    ) -> None:
        self.name = name
        self._work, self._metrics = work, metrics
        self._failed, self._given_up = failed, given_up
        self._most_failures = most_failures
        self._in_a_row = 0
        self._trouble: str | None = None
        self._stalled_after_s = stalled_after_s
        self._since_s: float | None = None
        self._stall_told = False
        self._joined = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> ServiceThread:
        """Starts the thread; gives itself (to an owner whose work does not use what that is assigned to)."""
        _watch(self)
        self._thread.start()
        return self

    def worked(self) -> None:
        """Called by the work when it has done some: failures before this do not count any more."""
        self._in_a_row = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around one piece of work; what is outside of it may take for ever."""
        self._since_s = time.monotonic()
        try:
            yield
        finally:
            self._since_s = None

    @property
    def stall(self) -> str | None:
        """How long it has been at one piece of work, once that is too long; None else, and again when it goes on."""
        seconds = self._stalled_s()
        return f"thread {self.name} has been at one piece of work for {seconds:.0f} s" if seconds else None

    @property
    def trouble(self) -> str | None:
        """Why the work is not run any more, None while it is or when it ended as it should."""
        return self._trouble

    def is_alive(self) -> bool:
        """Whether the work is running, or about to be run again."""
        return self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of the work, which somebody has told to stop; False when that was not within `timeout_s`."""
        self._joined.set()  # a pause before the next run is over now
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def look(self) -> None:
        """Tells log and metric of a stall; called now and then, from another thread."""
        seconds = self._stalled_s()
        if not seconds and not self._stall_told:
            return
        with suppress(BaseException):
            if seconds and not self._stall_told:
                _log.error("%s", self.stall)
            self._stall_told = bool(seconds)
            self._metrics.gauge("cmt_thread_stalled_seconds", seconds, thread=self.name)

    def _stalled_s(self) -> float:
        since_s = self._since_s
        seconds = 0.0 if since_s is None else time.monotonic() - since_s
        return seconds if seconds > self._stalled_after_s and self.is_alive() else 0.0

    def _run(self) -> None:
        while True:
            try:
                self._work()
                return
            except BaseException as error:  # noqa: BLE001 - the one place that decides what a failed thread means
                if not self._goes_on(error):
                    return
            if self._in_a_row > 1:  # the first time it is run again at once: somebody may be waiting
                self._joined.wait(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self._in_a_row - 2)))

    def _goes_on(self, error: BaseException) -> bool:
        """Tells everybody of a failure; whether the work is to be run again."""
        self._in_a_row += 1
        last = self._most_failures is not None and self._in_a_row >= self._most_failures
        self._told(error, "it ends" if last else "it is run again")
        if last:
            self._trouble = f"thread {self.name} has ended: {type(error).__name__}"
        self._guarded(lambda: self._failed(error))
        if last:
            self._guarded(self._given_up)
        return not last

    def _told(self, error: BaseException, what_next: str) -> None:
        with suppress(BaseException):  # a log or a metric that fails must not end what it reports on
            # the error's text may quote a question or a document, which a log must not hold
            _log.error("thread %s failed: %s%s; %s", self.name, type(error).__name__, _place(error), what_next)
            _log.debug("its trace", exc_info=error)
        with suppress(BaseException):
            self._metrics.count("cmt_thread_failures_total", thread=self.name)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - a handler that fails is one more failure, and no end
            self._told(error, "while its failure was handled")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


_watched: WeakSet[ServiceThread] = WeakSet()
_starting = threading.Lock()
_watcher: threading.Thread | None = None


def _watch(thread: ServiceThread) -> None:
    """One thread of the process looks at all others."""
    global _watcher
    with _starting:
        _watched.add(thread)
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_look_forever, name="supervisor", daemon=True)
            _watcher.start()


def _look_forever() -> None:
    while True:
        time.sleep(_LOOK_EVERY_S)
        with _starting:
            threads = list(_watched)
        for thread in threads:
            thread.look()
        del threads
