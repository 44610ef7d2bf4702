"""Where a bank is: a folder of this machine, however it is spelled, or an address in an object store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.errors import BankUnavailable

__all__ = ["local_folder", "one_spelling"]

_FILE_URL = re.compile("file:", re.IGNORECASE)
_OTHER_URL = re.compile("[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def local_folder(uri: str) -> Path | None:
    """The absolute folder that a path or a file URL (percent-decoded) means; None for an object store.

    Raises BankUnavailable for a file URL that names no folder of this machine, and for a home folder that is unknown.
    """
    if _FILE_URL.match(uri):
        return _folder_of_url(uri)
    if _OTHER_URL.match(uri):
        return None
    try:
        return Path(uri).expanduser().absolute()
    except RuntimeError as error:
        raise BankUnavailable(f"bank {uri}: {error}; set bank.uri to a path that starts with /") from None


def one_spelling(uri: str) -> str:
    """One text for every spelling of a bank's place: relative, through a symbolic link, with a slash at the end, as URL."""
    folder = local_folder(uri)
    return uri.rstrip("/") if folder is None else str(folder.resolve())


def _folder_of_url(uri: str) -> Path:
    try:
        parts = urlsplit(uri)
        path = unquote(parts.path, errors="strict")
    except ValueError:  # a broken host, or bytes that are no UTF-8
        parts, path = None, ""
    usable = parts is not None and parts.netloc.lower() in ("", "localhost") and path.startswith("/")
    if not usable or (parts is not None and (parts.query or parts.fragment)) or "\0" in path:
        raise BankUnavailable(
            f"bank {uri} names no folder of this machine: set bank.uri to a path, or to file:///FOLDER "
            "(with %20 for a blank, %23 for # and %3F for ?)"
        )
    return Path(path)
