"""A question on its way through the engine, and whoever waits for its answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.query.engine.messages import Ask, Delta, Event, HitList

__all__ = ["Doubt", "Ticket"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doubt:
    """A first answer of mode `auto` that went where its sources do not: it goes on from the text of the best of them.

    `begun` is what was sent of it, `sent` the same with the sources' names, `tokens` what it took, and `weights` the sources'
    shares of the attention.
    """

    begun: str
    sent: str
    tokens: int
    prompt_tokens: int
    weights: Sequence[float]
    first_ms: float | None

    @property
    def best(self) -> int:
        """The source that was attended to most."""
        return max(range(len(self.weights)), key=lambda number: self.weights[number], default=0)


class Ticket:
    """A question on its way; `deliver` is called from the engine's threads, and a cancelled question gets nothing more."""

    def __init__(self, ask: Ask, deliver: Callable[[Event], None]) -> None:
        self.ask = ask
        self.arrived_s = time.monotonic()
        self.found = HitList()
        self.doubt: Doubt | None = None  # of the first answer, where it is asked again
        self.gone = False
        self._deliver = deliver

    def send(self, event: Event) -> None:
        """Hands an event over, unless nobody waits for it any more."""
        if self.gone:
            return
        self.gone = not isinstance(event, Delta)  # a Reply or a Failure is the last one
        try:
            self._deliver(event)
        except Exception as error:  # noqa: BLE001 - whoever asked is not there any more; the others' answers go on
            self.gone = True
            _log.warning("an answer could not be delivered: %s", type(error).__name__)

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() - self.arrived_s > self.ask.deadline_s

    def ms(self) -> float:
        """Milliseconds since it came."""
        return (time.monotonic() - self.arrived_s) * 1e3
