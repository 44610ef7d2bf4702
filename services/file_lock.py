"""A lock on a file that the kernel frees when its holder dies, and that says who holds it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

__all__ = ["FileLock"]


class FileLock:
    """One process at a time holds the file, which keeps its id. All methods raise OSError for a place that can't be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Takes the lock unless another holds it; whether it is ours. On network file systems without locks it always is."""
        file = self._path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                file.close()
                if isinstance(error, BlockingIOError):
                    return False
                raise
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        self._file = file
        return True

    def holder(self) -> str:
        """Who holds it, as " (process 123)"; empty when that is unknown."""
        try:
            pid = self._path.read_bytes()[:20]
        except OSError:
            return ""
        return f" (process {pid.decode()})" if pid.isdigit() else ""

    def release(self) -> None:
        """Gives the lock back; may be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
