"""Ctrl-C and SIGTERM, the same in every command from its first line on: one line, exit code 130, within two seconds.

1. the first signal raises KeyboardInterrupt in the main thread, so that `with` blocks close what they have opened
2. a thread ends the process after `ENDS_WITHIN_S` if that has not, whatever library or native code holds the main thread
3. a second signal ends it at once
Inside `interruptible(within_s)` the first signal is a request to finish: it raises nothing, and 2. waits for `within_s`. Inside
`left_to_finish(within_s)` it is one only while other code has taken the signal over, to finish by itself.

Nothing is lost by an end at once: what is not committed is read again, and children die with their parent.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

__all__ = [
    "ENDS_WITHIN_S",
    "INTERRUPTED",
    "Interrupts",
    "interruptible",
    "left_to_finish",
    "own_signals",
    "temporary_folder",
]

ENDS_WITHIN_S = 2.0
INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEARD_WITHIN_S = 0.5
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Interrupts:
    """The signals of this process; there is one, made by `main`, and tests make their own in a process of their own."""

    current: Interrupts | None = None

    def __init__(self) -> None:
        self.came = False
        self._heard = threading.Event()  # also where a library had taken the signal over
        self.graceful = False  # what came was taken as a request to finish
        self.temporary: set[str] = set()  # folders that go with the process
        self._stopping: threading.Event | None = None
        self._within_s = ENDS_WITHIN_S
        self._line, self._taken_over = "", False
        self._stderr = os.dup(2)  # Ray's start turns the other one away for a while
        self._woken, self._wake = os.pipe()
        self._before: dict[signal.Signals, Any] = {}
        os.set_blocking(self._wake, False)
        Interrupts.current = self

    def watch(self) -> None:
        """Takes the signals over; to be called in the main thread, before anything slow is imported."""
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        # the interpreter writes the signal's number here at once, also while native code holds the main thread
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        threading.Thread(target=self._end_in_time, name="interrupts", daemon=True).start()  # noqa: TID251 - it ends the process

    def release(self) -> None:
        """Gives the signals back; what has come is forgotten."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.write(self._wake, b"\0")  # tells the thread to end
        Interrupts.current = None

    def ends(self, code: int) -> bool:
        """Whether a program that comes to its end with this exit code was interrupted, and was not asked to finish.

        A library that has taken SIGTERM over ends the program with the signal's number, before our thread may have heard it.
        """
        return (self.came or self._heard.wait(_HEARD_WITHIN_S if code in _SIGNALS else 0.0)) and not self.graceful

    @contextmanager
    def finishing(
        self, within_s: float, line: str = "", taken_over: bool = False
    ) -> Iterator[Callable[[float | None], bool]]:
        """See `interruptible`, and with `taken_over` `left_to_finish`."""
        stopping = threading.Event()
        self._stopping, self._within_s, self._line, self._taken_over = stopping, within_s, line, taken_over
        try:
            yield stopping.wait
        finally:
            self._stopping = None
            if not self.graceful:
                self._within_s = ENDS_WITHIN_S

    def end(self, line: bytes = b"cmt: interrupted", code: int = INTERRUPTED) -> NoReturn:
        """Ends the process at once with one line, past exit handlers and threads that would hold it."""
        if self.temporary:
            import shutil

            for folder in tuple(self.temporary):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            terminal = os.isatty(self._stderr)
            os.write(self._stderr, b"%s%s\n" % (_SHOW_CURSOR + b"\n" if terminal else b"", line))
        os._exit(code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            return  # the thread ends the process
        self.came = True
        sys.unraisablehook = lambda unraisable: None  # an interrupt inside a destructor is printed as a trace
        if not self._asked_to_finish(number):
            raise KeyboardInterrupt

    def _asked_to_finish(self, number: int) -> bool:
        """Takes a signal as a request to finish, where it is one."""
        if (stopping := self._stopping) is None:
            return False
        if self._taken_over and signal.getsignal(number) == self._on_signal:
            return False
        self.graceful = True
        stopping.set()
        return True

    def _end_in_time(self) -> None:
        end_s: float | None = None
        while True:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            if not select.select([self._woken], [], [], left_s)[0]:
                if self.graceful:
                    self.end(b"cmt: stopped in the middle of what was under way; the next start does it again", 0)
                self.end()
            for number in os.read(self._woken, 64):
                if number == 0:
                    return
                if number not in _SIGNALS:
                    continue
                self._heard.set()
                if end_s is not None:
                    self.end()
                asked = self._asked_to_finish(number)
                end_s = time.monotonic() + (self._within_s if asked else ENDS_WITHIN_S)
                if asked and self._line:
                    with contextlib.suppress(OSError):
                        os.write(self._stderr, f"{self._line}\n".encode())


@contextmanager
def interruptible(within_s: float) -> Iterator[Callable[[float | None], bool]]:
    """Gives `wait(seconds)`, true as soon as Ctrl-C or SIGTERM came; the process then has `within_s` seconds to finish."""
    known = Interrupts.current
    interrupts = known or Interrupts()
    if known is None:  # the process is not the command line's: its signals are borrowed
        interrupts.watch()
    try:
        with interrupts.finishing(within_s) as wait:
            yield wait
    finally:
        if known is None:
            interrupts.release()


@contextmanager
def left_to_finish(within_s: float, line: str) -> Iterator[None]:
    """Whoever takes Ctrl-C and SIGTERM over inside the block has `within_s` seconds from one on; `line` is told then.

    While nobody has, a signal ends the command as everywhere.
    """
    if Interrupts.current is None:
        yield
        return
    with Interrupts.current.finishing(within_s, line, taken_over=True):
        yield


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A new folder that is gone when the block ends, also when the process is ended inside it."""
    import shutil  # this module is loaded before anything else: a signal must not come first
    import tempfile

    folder = tempfile.mkdtemp(prefix=prefix)
    kept = Interrupts.current.temporary if Interrupts.current else set()
    kept.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        kept.discard(folder)


@contextmanager
def own_signals() -> Iterator[None]:
    """Gives the signals back to whom they belong, when a library has taken them inside the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
