"""What every long-running command stands on: a Ray session."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.errors import ServiceError
from services.interrupts import own_signals
from services.settings import RaySettings
from services.threads import available_cores

__all__ = ["quiet_driver", "ray_session"]

_log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 256 * 2**20  # memories travel in small batches; Ray's default would take a third of the machine
_MIN_LOGICAL_CPUS = 4  # actors reserve one each, and share the cores


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """A local Ray that ends with the block, or a connection to the cluster at `settings.address`.

    Raises ServiceError in one line when the cluster can't be reached.
    """
    import ray

    quiet_driver()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "cmt"}
    if settings.address == "local":
        cpus = settings.num_cpus or max(_MIN_LOGICAL_CPUS, available_cores())
        options |= {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        # Ray's C++ core announces the log level it was given, past every log level
        with _no_stderr(), own_signals():  # Ray ends the driver on SIGTERM at once, with nothing flushed
            ray.init(address=settings.address, **options)
    except Exception as error:  # noqa: BLE001 - Ray raises plain Exceptions, too
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if settings.address == "local":
            raise ServiceError(f"Ray can't be started on this machine (too busy? try again): {reason}") from None
        raise ServiceError(f"Ray at {settings.address!r} (ray.address) can't be reached: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()


def quiet_driver() -> None:
    """What Ray's processes tell a driver goes to the log, not among a command's results on stdout.

    Ray prints it there whatever `log_to_driver` says: "Task ServeController.graceful_shutdown failed. There are infinite
    retries remaining", for instance, at an end that is in order. What matters is raised by the calls themselves.
    """
    from ray._private import worker

    worker.print_to_stdstream = _to_log


def _to_log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    _log.info("Ray: %s", " ".join(map(str, data.get("lines", ()))))


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
