"""What keeps a second writer away from a local bank, and a full disk from it; imports no LanceDB."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Protocol

from services.bank.failures import bank_errors
from services.bank.location import local_folder
from services.errors import BankFull, BankUnavailable
from services.file_lock import FileLock
from services.settings import BankSettings

__all__ = ["BankPlace", "WriterLock", "check_place", "require_free"]

_LOCK_FILE = ".writer.lock"
_HELD_S = 3.0  # a writer that was just killed may hold its lock for a moment


class BankPlace(Protocol):
    """Where a bank is; `folder` is None in an object store."""

    @property
    def folder(self) -> Path | None:
        """The local bank's folder."""
        ...

    @property
    def uri(self) -> str:
        """Its address as it was given."""
        ...


class WriterLock:
    """Keeps a second writer away from a local bank, because concurrent upserts duplicate rows.

    The kernel frees the lock when the process dies. Object stores have no such lock: there the writer notices after
    a commit that versions were skipped.
    """

    def __init__(self, place: BankPlace) -> None:
        self._place = place
        self._lock = FileLock(place.folder / _LOCK_FILE) if place.folder is not None else None

    def acquire(self, wait_s: float) -> None:
        """Takes the lock; BankUnavailable when another writer still holds it after `wait_s` seconds."""
        if self._place.folder is None or self._lock is None:
            return
        deadline = time.monotonic() + wait_s
        with bank_errors(self._place.uri):
            self._place.folder.mkdir(parents=True, exist_ok=True)
            while not self._lock.acquire():
                if time.monotonic() >= deadline:
                    holder = self._lock.holder()
                    raise BankUnavailable(
                        f"bank {self._place.uri}: another writer has it open{holder}, and a bank has only one"
                    )
                time.sleep(0.05)

    def release(self) -> None:
        """Gives the lock back; may be called twice."""
        if self._lock is not None:
            self._lock.release()


class _Local:
    def __init__(self, uri: str) -> None:
        self.folder = local_folder(uri)
        self.uri = uri if self.folder is None else str(self.folder)


def check_place(settings: BankSettings) -> None:
    """What would keep a writer from a local bank, told before anything slow is started.

    Raises BankUnavailable when the folder can't be written or another writer has it open, BankFull without free space.
    """
    place = _Local(settings.uri)
    if place.folder is None:
        return
    nearest = _existing(place.folder)
    if not nearest.is_dir():
        raise BankUnavailable(f"bank {place.folder}: {nearest} is no folder; set bank.uri")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BankUnavailable(f"bank {place.folder}: {nearest} can't be written by this user; set bank.uri")
    require_free(place, settings.min_free_bytes)
    if nearest == place.folder:
        lock = WriterLock(place)
        lock.acquire(_HELD_S)
        lock.release()


def require_free(place: BankPlace, min_free_bytes: int) -> None:
    """Raises BankFull when less is free on the disk of a local bank."""
    if place.folder is None or min_free_bytes <= 0:
        return
    free_bytes = shutil.disk_usage(_existing(place.folder)).free
    if free_bytes < min_free_bytes:
        raise BankFull(
            f"bank {place.folder}: {free_bytes / 2**20:.0f} MiB are free on its disk, "
            f"bank.min_free_bytes asks for {min_free_bytes / 2**20:.0f} MiB"
        )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
