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
    """Why an answer of mode `auto` reads text: its first one went where its sources do not, or it takes two of them.

    `read` are the numbers of the sources whose texts are read, in their order, and `weights` all sources' shares of attention.
    `begun` is what was sent of the first answer, `sent` the same with the sources' names, and `tokens` what it took.
    """

    read: tuple[int, ...]
    weights: Sequence[float]
    begun: str = ""
    sent: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    first_ms: float | None = None


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
