"""The threads of a service: none ends unseen, whatever its work raises.

Every thread of `services` is a `ServiceThread` (ruff refuses `threading.Thread` elsewhere). Its work is a loop that returns when
it is told to stop. What the work raises, BaseException included (a panic of Rust code is one), is logged, counted in
`cmt_thread_failures_total`, told to the part that owns the thread, and the work is run again.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from services.metrics import Metrics

__all__ = ["ServiceThread"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0


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
    ) -> None:
        self.name = name
        self._work, self._metrics = work, metrics
        self._failed, self._given_up = failed, given_up
        self._most_failures = most_failures
        self._in_a_row = 0
        self._trouble: str | None = None
        self._joined = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> ServiceThread:
        """Starts the thread; gives itself (to an owner whose work does not use what that is assigned to)."""
        self._thread.start()
        return self

    def worked(self) -> None:
        """Called by the work when it has done some: failures before this do not count any more."""
        self._in_a_row = 0

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
