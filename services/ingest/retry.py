"""Repeats what Kafka, the bank or a worker failed at, with growing pauses, until it works or has failed for too long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from services.errors import BankError, BankFenced, BankMismatch, BrokerError, ServiceError, TopicMissing

__all__ = ["Retry", "may_heal"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0

T = TypeVar("T")


class Retry:
    """Calls again for up to `give_up_after_s`; `wait(seconds)` pauses, and is true when there is no more time."""

    def __init__(
        self, give_up_after_s: float, wait: Callable[[float], bool], on_retry: Callable[[], None] = lambda: None
    ) -> None:
        self._give_up_after_s = give_up_after_s
        self._wait = wait
        self._on_retry = on_retry

    def __call__(self, call: Callable[[], T]) -> T:
        """What `call` returns; its own error when that can't heal or has not healed in time."""
        deadline = time.monotonic() + self._give_up_after_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except ServiceError as error:
                if not may_heal(error) or time.monotonic() + pause_s > deadline or self._wait(pause_s):
                    raise
                self._on_retry()
                _log.warning("trying again in %.1f s: %s", pause_s, error)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def may_heal(error: ServiceError) -> bool:
    """Whether waiting can help: a disk may get space, a broker or object store may come back."""
    if isinstance(error, BankFenced | BankMismatch | TopicMissing):
        return False
    return error.retriable or isinstance(error, BankError | BrokerError)
