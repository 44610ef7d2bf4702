"""Runs a command of `cmt`: what goes wrong becomes one line and an exit code.

Results go to stdout, progress and errors to stderr. An error is one line and an exit code (services/errors.py lists them);
CMT_LOG_LEVEL=DEBUG shows the trace of one that nobody has foreseen.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from services.extras import missing_extra
from services.interrupts import INTERRUPTED, Interrupts

__all__ = ["run_command"]

_LOOPBACK = "localhost,127.0.0.1,::1"


def run_command() -> NoReturn:
    """Runs the command of the process's arguments and ends the process."""
    interrupts = Interrupts()
    try:
        interrupts.watch()  # before anything slow is imported: an import can be interrupted, too
        _spare_loopback_from_proxies()
        code = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if interrupts.ends(code):
        interrupts.end()
    _exit(code)


def _run() -> int:
    try:
        from services.commands.errors import one_line_errors

        with one_line_errors():
            from services.commands.tree import app

            app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ModuleNotFoundError as error:  # before there is anything to print with
        line = missing_extra(error)
        if line is None:
            raise
        print(f"cmt: {line}", file=sys.stderr)
        return 2
    return 0


def _exit(code: int) -> NoReturn:
    """Past the interpreter's own end: libraries take seconds for theirs, in which no signal is heard and traces are printed."""
    with contextlib.suppress(OSError, ValueError):  # who reads our output has gone, or it is closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _spare_loopback_from_proxies() -> None:
    """No proxy reaches a service or a store on this machine, whatever the environment says; children inherit it."""
    kept = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"{kept},{_LOOPBACK}" if kept else _LOOPBACK
