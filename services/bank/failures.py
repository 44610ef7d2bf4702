"""Errors of the disk, the object store and Lance as errors of the bank, in one line."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from services.errors import BankError, BankFull, BankUnavailable, is_panic

__all__ = ["bank_errors"]

_NO_SPACE = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")


@contextlib.contextmanager
def bank_errors(uri: str) -> Iterator[None]:
    """Turns errors of the disk, the object store and Lance into BankFull or BankUnavailable."""
    try:
        yield
    except BankError:
        raise
    except BaseException as error:
        if not isinstance(error, OSError | RuntimeError | ValueError) and not is_panic(error):
            raise
        reason = _reason(error)
        if any(sign in str(error).lower() for sign in _NO_SPACE) or getattr(error, "errno", None) == errno.ENOSPC:
            raise BankFull(f"bank {uri}: no space is left on its disk") from error
        raise BankUnavailable(f"bank {uri} can't be used: {reason}") from error


def _reason(error: BaseException) -> str:
    """The first line of an error, without Lance's wrapping and the source location at its end."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({error.filename})" if error.filename else "")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    first = re.sub(r"^(lance error: )?(LanceError\(\w+\): )?", "", first)
    return re.sub(r",? \S+\.rs:\d+(:\d+)?$", "", first)[:300]
