"""A note of the process that ingests on this machine, so that a preStop hook can end it in order; imports no Ray.

On Kubernetes the ingest runs as a Ray job on the head's pod: the pod's SIGTERM does not reach it, `cmt ingest drain` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.bank.location import one_spelling
from services.errors import ServiceError
from services.settings import Settings

__all__ = ["drain", "noted_ingest"]

_LOOK_S = 0.2
_EXTRA_S = 10.0  # the actors' ends and Ray's own, after the graceful stop


@contextmanager
def noted_ingest(settings: Settings) -> Iterator[None]:
    """This process is the ingest of the settings' topic, group and bank while the block runs."""
    note = _note(settings)
    note.write_text(str(os.getpid()), encoding="ascii")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def drain(settings: Settings) -> bool:
    """Sends SIGTERM to the ingest of these settings and waits for its end; False when none runs on this machine.

    Raises ServiceError when it has not ended within `ingest.stop_within_s` and a little more.
    """
    pid = _running(_note(settings))
    if pid is None:
        return False
    end = time.monotonic() + settings.ingest.stop_within_s + _EXTRA_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while _lives(pid):
        if time.monotonic() > end:
            raise ServiceError(f"ingest (process {pid}) has not ended; what it had not committed will be read again")
        time.sleep(_LOOK_S)
    return True


def _running(note: Path) -> int | None:
    try:
        pid = int(note.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if _lives(pid) else None


def _lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(") ")[2][:1] != "Z"  # a zombie has ended


def _note(settings: Settings) -> Path:
    identity = f"{settings.kafka.topic}\n{settings.kafka.group_id}\n{one_spelling(settings.bank.uri)}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cmt-ingest-{os.getuid()}-{name}.pid"
