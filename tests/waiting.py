"""The one way in which tests wait: for a condition, with a bound, and with words for what was seen instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["until"]

T = TypeVar("T")


def until(
    claim: Callable[[], T], within_s: float = 20.0, *, every_s: float = 0.02, seen: Callable[[], object] = str
) -> T:
    """What `claim` gave as soon as that was true; AssertionError with `seen()` when it was not within `within_s`."""
    end = time.monotonic() + within_s
    while not (found := claim()):
        assert time.monotonic() < end, f"it was still {found!r} after {within_s:g} s: {seen()}"
        time.sleep(every_s)
    return found
