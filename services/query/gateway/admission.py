"""The bound on questions inside the query service: above it a question is refused at once instead of waiting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from services.errors import Overloaded
from services.metrics import Metrics

__all__ = ["Admission"]


class Admission:
    """Counts the questions inside; `most` is those in generation plus those that may wait.

    Not thread-safe: it belongs to one event loop.
    """

    def __init__(self, most: int, parallel: int, metrics: Metrics) -> None:
        self._most = most
        self._parallel = parallel
        self._metrics = metrics
        self._inside = 0
        self._usual_s = 1.0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Holds a place while the question is inside; raises Overloaded with the time after which to try again."""
        if self._inside >= self._most:
            raise Overloaded(f"{self._inside} questions are waiting or in generation", self.retry_after_s())
        self._move(+1)
        try:
            yield
        finally:
            self._move(-1)

    def answered(self, seconds: float) -> None:
        """Learns how long a question usually takes, as a moving average."""
        self._usual_s += 0.2 * (seconds - self._usual_s)

    def retry_after_s(self) -> int:
        """Whole seconds until a place is likely to be free: one usual batch, 1 at least and 60 at most."""
        return min(60, max(1, math.ceil(self._usual_s * self._parallel / max(1, self._inside))))

    def _move(self, step: int) -> None:
        self._inside += step
        self._metrics.gauge("cmt_query_queued", self._inside)
