"""Looks at the folder of a long command's result before the command begins: hours later is too late."""

from __future__ import annotations

import tempfile
from pathlib import Path

from services.errors import SettingsError

__all__ = ["check_output"]


def check_output(path: Path, what: str) -> Path:
    """The absolute path; SettingsError in one line when nothing can be written beside it. Its parents are made."""
    place = path.expanduser().absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise SettingsError(f"{what} {place} can't be written: {error.strerror or error}; name another place") from None
    return place
