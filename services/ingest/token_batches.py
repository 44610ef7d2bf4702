"""A bounded queue of windows that hands out batches of like length within a token budget, none of them too late."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cmt_core.windows import Window

__all__ = ["TokenQueue", "Waiting"]

_CHARS_PER_TOKEN = 4
_QUEUE_BUDGETS = 4
_SMALLEST_BUDGET = 64


@dataclass(slots=True, eq=False)
class Waiting:
    """A window on its way, an estimate of its tokens, and where its result goes (`slot`, for the caller's use)."""

    window: Window
    slot: Any
    tokens: int = 0
    arrived_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.tokens = 1 + len(self.window.title) // _CHARS_PER_TOKEN + len(self.window.text) // _CHARS_PER_TOKEN


class TokenQueue:
    """Thread-safe. A batch costs its longest window times their number, since it is padded; one window always fits."""

    def __init__(self, budget_tokens: int, wait_s: float) -> None:
        self._budget = budget_tokens
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._waiting: list[Waiting] = []
        self._tokens = 0
        self._closed = False

    @property
    def budget_tokens(self) -> int:
        """What a batch may cost."""
        return self._budget

    def halve_budget(self) -> None:
        """After the device ran out of memory."""
        with self._changed:
            self._budget = max(_SMALLEST_BUDGET, self._budget // 2)

    def put(self, windows: Iterable[Waiting]) -> None:
        """Adds windows; blocks while four batches or more wait already."""
        windows = list(windows)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._tokens < _QUEUE_BUDGETS * self._budget)
            self._waiting += windows
            self._tokens += sum(one.tokens for one in windows)
            self._changed.notify_all()

    def take(self) -> list[Waiting]:
        """The next batch, shortest first; empty once the queue is closed.

        It is cut when there is enough for a full one, or when the oldest window has waited for `wait_s`, and then
        around the length of that one.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            due_s = min(one.arrived_s for one in self._waiting) + self._wait_s
            self._changed.wait_for(
                lambda: self._closed or self._tokens >= self._budget, max(0.0, due_s - time.monotonic())
            )
            batch = self._cut(time.monotonic())
            self._changed.notify_all()
            return batch

    def close(self) -> None:
        """Ends `take` and what is blocked in `put`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _cut(self, now_s: float) -> list[Waiting]:
        """Neighbours in length: those around the oldest window if it is due, else the longest ones."""
        by_length = sorted(self._waiting, key=lambda one: one.tokens)
        oldest = min(by_length, key=lambda one: one.arrived_s)
        first = by_length.index(oldest) if now_s - oldest.arrived_s >= self._wait_s else len(by_length) - 1
        low = high = first
        while low > 0 and by_length[high].tokens * (high - low + 2) <= self._budget:
            low -= 1
        while high + 1 < len(by_length) and by_length[high + 1].tokens * (high - low + 2) <= self._budget:
            high += 1
        batch = by_length[low : high + 1]
        self._waiting = by_length[:low] + by_length[high + 1 :]
        self._tokens -= sum(one.tokens for one in batch)
        return batch
