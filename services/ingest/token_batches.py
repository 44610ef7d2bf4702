"""The windows that wait for the model, handed out in batches of like length that no large document can fill for long.

Three batches of four begin with the document that has the fewest windows left, so that a small one passes a large one; the
fourth begins with the oldest, so that a large one is never forgotten. A batch lasts about `_BATCH_S` at most where the device
is slow: a window that comes while one is being read waits no longer than that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cmt_core.text.windows import Window

__all__ = ["QueuedDocument", "QueuedWindow", "TokenQueue"]

_SMALLEST_BUDGET = 64
_OLDEST_EVERY = 4
_LIKE = 0.75  # shortest by longest in a batch: what is padded is computed for nothing
_PADDED_TO = 32  # so that all shorter windows are alike
_BATCH_S, _TIMED_BUDGET = 0.5, 256  # and the least that a slow device is given at once
_KEPT = 0.8  # of the measured speed, when another batch has been timed


@dataclass(slots=True, eq=False)
class QueuedDocument:
    """A document on its way: how many of its windows wait, and the moment (monotonic seconds) of its arrival."""

    left: int
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class QueuedWindow:
    """A window on its way, its document, its tokens as far as they count, and where its result goes (`slot`, the caller's)."""

    window: Window
    document: QueuedDocument
    slot: Any
    tokens: int = 0

    def __post_init__(self) -> None:
        self.tokens = max(_PADDED_TO, self.window.tokens)


class TokenQueue:
    """Thread-safe, and bounded by its callers: each waits for its own windows. A batch costs its longest window times their
    number, since it is padded, and at most `budget_tokens`; one window always fits."""

    def __init__(self, budget_tokens: int) -> None:
        self._budget = budget_tokens
        self._tokens_per_s = 0.0
        self._changed = threading.Condition()
        self._waiting: list[QueuedWindow] = []
        self._batches = 0
        self._closed = False

    @property
    def budget_tokens(self) -> int:
        """What a batch may cost now."""
        timed = int(self._tokens_per_s * _BATCH_S)
        return min(self._budget, max(_TIMED_BUDGET, timed)) if timed else self._budget

    def halve_budget(self) -> None:
        """After the device ran out of memory."""
        with self._changed:
            self._budget = max(_SMALLEST_BUDGET, self._budget // 2)

    def learn(self, batch: Iterable[QueuedWindow], seconds: float) -> None:
        """Tells how long the model took for a batch."""
        speed = _cost(list(batch)) / max(seconds, 1e-6)
        with self._changed:
            self._tokens_per_s = _KEPT * self._tokens_per_s + (1 - _KEPT) * speed if self._tokens_per_s else speed

    def put(self, windows: Iterable[QueuedWindow]) -> bool:
        """Adds windows; never blocks. False when the queue is closed, and nothing was added."""
        with self._changed:
            if self._closed:
                return False
            self._waiting += windows
            self._changed.notify_all()
            return True

    def take(self) -> list[QueuedWindow]:
        """The next batch, as soon as there is a window; empty once the queue is closed.

        While the model is busy others arrive and share the next batch; while it is not, waiting for them would be idle.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [] if self._closed else self._cut()

    def close(self) -> list[QueuedWindow]:
        """Ends `take`; gives the windows that nobody will take any more."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
            return left

    def _cut(self) -> list[QueuedWindow]:
        """The first window in turn, and those after it that are of like length, while they fit."""
        self._batches += 1
        by_age = self._batches % _OLDEST_EVERY == 0
        order = sorted(self._waiting, key=lambda one: (0 if by_age else one.document.left, one.document.arrived_s))
        budget, batch = self.budget_tokens, order[:1]
        shortest = longest = order[0].tokens
        for one in order[1:]:
            low, high = min(shortest, one.tokens), max(longest, one.tokens)
            if low >= _LIKE * high and high * (len(batch) + 1) <= budget:
                batch.append(one)
                shortest, longest = low, high
        taken = set(map(id, batch))
        self._waiting = [one for one in self._waiting if id(one) not in taken]
        for one in batch:
            one.document.left -= 1
        return batch


def _cost(batch: list[QueuedWindow]) -> int:
    return len(batch) * max(one.tokens for one in batch)
