"""What every long-running command stands on: a Ray session, and a wait for Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from services.errors import ServiceError
from services.settings import RaySettings
from services.threads import available_cores

__all__ = ["interruptible", "ray_session"]

_OBJECT_STORE_BYTES = 256 * 2**20  # memories travel in small batches; Ray's default would take a third of the machine
_MIN_LOGICAL_CPUS = 4  # actors reserve one each, and share the cores


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """A local Ray that ends with the block, or a connection to the cluster at `settings.address`.

    Raises ServiceError in one line when the cluster can't be reached.
    """
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "cmt"}
    if settings.address == "local":
        cpus = settings.num_cpus or max(_MIN_LOGICAL_CPUS, available_cores())
        options |= {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        # Ray's C++ core announces the log level it was given, past every log level
        with _no_stderr(), _own_signals():
            ray.init(address=settings.address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ServiceError(f"Ray at {settings.address!r} can't be reached: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray ends the driver on SIGTERM at once, with nothing flushed: what to do then is for `interruptible` to say."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Drops what native code of this process writes to file descriptor 2 while it is open."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def interruptible() -> Iterator[Callable[[float | None], bool]]:
    """Gives `wait(seconds)`, which is true as soon as Ctrl-C or SIGTERM came; a second signal ends the process at once."""
    stopped = threading.Event()
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(number, signal.SIG_DFL)

    for number in old:
        signal.signal(number, stop)
    try:
        yield stopped.wait
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
