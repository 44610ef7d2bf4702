"""Gives the topic's partitions to consumers, moves them when one dies or joins, and sizes the compressor pool by lag.

It holds no state that matters: what consumers read is asked from them, so a coordinator that is killed goes on where it was.
The consumers do not need it for what they read already.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from services.errors import BrokerError, WorkerLost
from services.ingest.assignment import next_step, plan
from services.ingest.consumer import ConsumerStatus
from services.ingest.pool_policy import PoolPolicy
from services.metrics import Metrics

__all__ = ["Coordinator", "CoordinatorStatus", "Member", "Pool", "TopicState"]

_log = logging.getLogger(__name__)
_TOPIC_EVERY_S = 3.0
_LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class TopicState:
    """The topic as the broker has it: its id and its number of partitions."""

    topic_id: str
    partitions: int


class Member(Protocol):
    """A consumer, seen from the coordinator; every method raises WorkerLost when it is dead or being started again."""

    def ask(self) -> Callable[[float], ConsumerStatus | None]:
        """Asks for its status; the function waits for up to so many seconds, and gives None when it has none yet."""
        ...

    def assign(self, partitions: Iterable[int], topic_id: str) -> None:
        """Tells it what to read; does not wait."""
        ...

    def kill(self) -> None:
        """Ends its process; Ray starts it again."""
        ...


class Pool(Protocol):
    """The compressor actors."""

    def size(self) -> int:
        """Actors that take work, or will once their model is loaded."""
        ...

    def resize(self, size: int) -> None:
        """Starts or ends actors; does not wait."""
        ...

    def refresh(self, members: Iterable[str]) -> int:
        """Tells these consumers about actors that have become ready, or are gone; the number that takes work."""
        ...


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    """The last look: partitions of the topic, what each consumer reads, the silent ones, and the compressors."""

    partitions: int = 0
    assigned: Mapping[str, frozenset[int]] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    compressors: int = 0
    looks: int = 0


class Coordinator:
    """`tick` does one look at everything; `topic` may raise BrokerError, then the last state counts.

    `assigns` is off when Kafka's group gives out the partitions. A consumer that does not answer for
    `consumer_timeout_s` is killed before others get its partitions, so two never read one for long.
    """

    def __init__(
        self,
        topic: Callable[[], TopicState],
        members: Callable[[], Mapping[str, Member]],
        pool: Pool,
        policy: PoolPolicy,
        metrics: Metrics,
        *,
        assigns: bool = True,
        consumer_timeout_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topic, self._members, self._pool, self._policy = topic, members, pool, policy
        self._metrics = metrics
        self._assigns = assigns
        self._consumer_timeout_s = consumer_timeout_s
        self._clock = clock
        self._state: TopicState | None = None
        self._topic_due_s = float("-inf")
        self._answered_s: dict[str, float] = {}
        self._last_seen: dict[str, frozenset[int]] = {}
        self._status = CoordinatorStatus()
        self._lock = threading.Lock()

    def tick(self) -> None:
        """Looks at topic, consumers and lag, and tells the consumers what to read from now on."""
        self._look_at_topic()
        members = self._members()
        statuses, silent = self._look(members)
        if self._assigns and self._state is not None:
            self._assign(members, statuses, silent)
        lag = sum(sum(status.lag.values()) for status in statuses.values())
        self._pool.resize(self._policy.wanted(self._pool.size(), lag))
        compressors = self._pool.refresh(statuses)
        self._metrics.gauge("cmt_pool_compressors", compressors)
        self._metrics.gauge("cmt_pool_consumers", len(statuses))
        with self._lock:
            self._status = CoordinatorStatus(
                self._state.partitions if self._state else 0,
                {name: status.assigned for name, status in statuses.items()},
                tuple(sorted(silent)),
                compressors,
                self._status.looks + 1,
            )

    def status(self) -> CoordinatorStatus:
        """What the last look saw."""
        with self._lock:
            return self._status

    def _look_at_topic(self) -> None:
        if self._clock() < self._topic_due_s:
            return
        try:
            state = self._topic()
        except BrokerError as error:
            _log.warning("the topic's partitions can't be read: %s", error)
        else:
            if self._state not in (None, state):
                _log.info("the topic is %s now", state)
            if state.partitions:
                self._state = state
        self._topic_due_s = self._clock() + _TOPIC_EVERY_S

    def _look(self, members: Mapping[str, Member]) -> tuple[dict[str, ConsumerStatus], set[str]]:
        """The statuses of those that answer and run, and the names of those that are only silent yet."""
        asked = {name: member.ask() for name, member in members.items()}
        statuses: dict[str, ConsumerStatus] = {}
        silent: set[str] = set()
        deadline = time.monotonic() + _LOOK_S
        for name, answer in asked.items():
            try:
                status = answer(max(0.01, deadline - time.monotonic()))
            except WorkerLost as error:
                _log.info("consumer %s is gone: %s", name, error)
                self._answered_s.pop(name, None)
                continue
            if status is None:
                if not self._is_given_up(name, members[name]):
                    silent.add(name)
                continue
            self._answered_s[name] = self._clock()
            if status.running:
                statuses[name] = status
        return statuses, silent

    def _is_given_up(self, name: str, member: Member) -> bool:
        """Whether a silent consumer has been silent for too long, and was killed for it."""
        since = self._answered_s.setdefault(name, self._clock())
        if self._clock() - since < self._consumer_timeout_s:
            return False
        _log.warning("consumer %s has not answered for %.0f s: it is started again", name, self._clock() - since)
        member.kill()
        self._answered_s.pop(name, None)
        return True

    def _assign(
        self, members: Mapping[str, Member], statuses: Mapping[str, ConsumerStatus], silent: Iterable[str]
    ) -> None:
        assert self._state is not None
        held = {name: status.assigned for name, status in statuses.items()}
        held |= {name: self._last_seen.get(name, frozenset()) for name in silent}
        self._last_seen = dict(held)
        steps = next_step(plan(range(self._state.partitions), held), held)
        for name, status in statuses.items():
            current = (status.wanted, status.topic_id if status.wanted else self._state.topic_id)
            if current == (frozenset(steps[name]), self._state.topic_id):
                continue
            members[name].assign(sorted(steps[name]), self._state.topic_id)
            self._metrics.count("cmt_pool_reassignments_total")
