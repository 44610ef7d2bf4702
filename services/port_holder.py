"""Who listens on a TCP port of this machine, for errors that say it is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["holder_of_port"]

_LISTENS = "0A"


def holder_of_port(port: int) -> str:
    """As " (process 123, python)"; empty when it can't be known: another user's process, or no Linux."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    if not sockets:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_target(link) in sockets for link in (process / "fd").iterdir()):
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return f" (process {process.name}, {name})"
    return ""


def _inodes(port: int) -> Iterator[str]:
    """Of the sockets that listen there, by either version of the protocol."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return ""
