"""Decides how many compressor actors there should be: more while the lag stays high, fewer once it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PoolPolicy"]


class PoolPolicy:
    """Grows by one when the lag (records) was at `grow_at_lag` for `grow_after_s`, shrinks by one when it was below a
    tenth of that for `shrink_after_s`; always within `smallest` and `largest`."""

    def __init__(
        self,
        smallest: int,
        largest: int,
        grow_at_lag: int,
        grow_after_s: float = 5.0,
        shrink_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._smallest, self._largest = smallest, max(smallest, largest)
        self._grow_at_lag = grow_at_lag
        self._grow_after_s, self._shrink_after_s = grow_after_s, shrink_after_s
        self._clock = clock
        self._high_since: float | None = None
        self._low_since: float | None = None

    def wanted(self, size: int, lag: int) -> int:
        """The size that the pool should have, now that it has `size` actors and `lag` records wait."""
        now = self._clock()
        high, low = lag >= self._grow_at_lag, lag * 10 < self._grow_at_lag
        self._high_since = (self._high_since if self._high_since is not None else now) if high else None
        self._low_since = (self._low_since if self._low_since is not None else now) if low else None
        if self._high_since is not None and now - self._high_since >= self._grow_after_s:
            self._high_since = now  # the next one comes only when this one was not enough
            size += 1
        elif self._low_since is not None and now - self._low_since >= self._shrink_after_s:
            self._low_since = now
            size -= 1
        return min(max(size, self._smallest), self._largest)
