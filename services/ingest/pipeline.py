"""Starts and stops the ingest of a topic on Ray: coordinator, consumer actors, compressor actors, and one writer actor.

handle = start_ingest(settings, bootstrap)     # Ray must be initialised
handle.wait_until_caught_up(60.0)
handle.stop(20.0)
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from services.errors import ServiceError
from services.ingest.compressor import compressor_actor
from services.ingest.consumer import ConsumerStatus
from services.ingest.consumer_actor import consumer_actor
from services.ingest.coordinator_actor import coordinator_actor
from services.ingest.names import compressor_name, consumer_name
from services.ingest.ports import ModelFactory
from services.ingest.remote import result
from services.ingest.writer import writer_actor
from services.metrics_hub import hub_handle
from services.models import load_cmt
from services.settings import Settings
from services.stream.shape import RecordShape
from services.stream.topics import ensure_topics, topic_partitions

__all__ = ["IngestHandle", "IngestStatus", "start_ingest"]

_log = logging.getLogger(__name__)

_LOAD_S = 600.0  # a large LLM from a slow disk
_OPEN_S = 120.0
_ANSWER_S = 60.0  # an actor that Ray starts again takes its time
_NAME_WAIT_S = 5.0  # Ray frees the name of an actor that was stopped a moment after
_LOOK_EVERY_S = 0.1
_never = threading.Event()
_QUIET_S = 0.5  # a broker's end offset may lag behind what it has acknowledged


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """Ingest now: records by outcome since the start, lag by partition (records), what is in flight, what went wrong.

    Outcomes are `written`, `deleted` and `dead_lettered`; `stale` of these were in the bank already, as replays are.
    """

    running: bool
    records: dict[str, int]
    stale: int
    lag: dict[int, int]
    in_flight_records: int
    in_flight_bytes: int
    last_error: ServiceError | None
    stopped: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.records.items())) or "no records"
        shown = f"{outcomes}; lag {sum(self.lag.values())}, in flight {self.in_flight_records}"
        if self.stopped:
            shown += f"; partitions {', '.join(map(str, sorted(self.stopped)))} wait for the dead-letter topic"
        return f"{shown}; {self.last_error}" if self.last_error else shown


class IngestHandle:
    """A running ingest. Ray must stay initialised while it is used; `stop` is for the end."""

    def __init__(self, settings: Settings, bootstrap: str, hub: Any) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self._hub = hub  # the metrics hub lives as long as its maker's handle
        self._stopped = False
        self.compressors: list[Any] = []
        self.compressor_names: list[str] = []
        self.consumers: list[Any] = []
        self.writer: Any = None
        self.coordinator: Any = None
        self._consumers_made = 0

    def add_consumer(self) -> Any:
        """Starts one more consumer, which the coordinator (or the group) gives its share. Raises what it failed with."""
        made = self._new_consumer()
        result(made.wait_until_connected.remote(_OPEN_S), _OPEN_S + 5.0)
        self.consumers.append(made)
        return made

    def remove_consumer(self, timeout_s: float) -> None:
        """Stops the consumer that came last; the others take its partitions over from what it has committed."""
        leaving = self.consumers.pop()
        self._end(leaving.stop.remote(timeout_s), time.monotonic() + timeout_s + 2.0)
        ray.kill(leaving, no_restart=True)

    def _new_consumer(self) -> Any:
        deadline = time.monotonic() + _NAME_WAIT_S
        name = consumer_name(self._settings, self._consumers_made)
        self._consumers_made += 1
        while True:
            try:
                return consumer_actor(self._settings, self._bootstrap, self.compressor_names, name)
            except ValueError:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"another ingest of this Ray cluster reads {self._settings.kafka.topic} into the same bank"
                    ) from None
                time.sleep(0.1)

    def start_consumers(self) -> None:
        """Starts what the settings ask for, and the coordinator once they are connected."""
        self.consumers = [self._new_consumer() for _ in range(self._settings.ingest.consumers)]
        for reference in [consumer.wait_until_connected.remote(_OPEN_S) for consumer in self.consumers]:
            result(reference, _OPEN_S + 5.0)

    def status(self) -> IngestStatus:
        """What all consumers do now. Raises ServiceError when an actor does not answer."""
        return _merged(self._statuses())

    def raise_if_failed(self) -> None:
        """Raises the error that ended a consumer (BankFull, BrokerUnreachable, ...), as itself."""
        error = self.status().last_error
        if error is not None:
            raise error

    def wait_until_caught_up(self, timeout_s: float, pause: Callable[[float], bool] | None = None) -> bool:
        """True when every partition is read to its end and committed, with nothing in flight; False when `pause` said stop.

        Raises what a consumer failed with, and ServiceError when ingest got no further for `timeout_s` seconds: a large LLM on a
        slow machine takes its time.
        """
        deadline = time.monotonic() + timeout_s
        # a consumer that dies and begins again does the same records anew: no progress
        most_done, least_lag = 0, math.inf
        partitions = topic_partitions(self._settings.kafka, self._bootstrap, self._settings.kafka.topic)
        first = [status.measured for status in self._statuses()]
        quiet_since: float | None = None
        while quiet_since is None or time.monotonic() - quiet_since < _QUIET_S:
            statuses = self._statuses()
            merged = _merged(statuses)
            if merged.last_error is not None:
                raise merged.last_error
            done = len(merged.lag) >= partitions and not sum(merged.lag.values()) and not merged.in_flight_records
            # a lag that was measured before the call may be older than the last record; a restart counts from 0 again
            fresh = all(not 0 <= one.measured - old < 2 for one, old in zip(statuses, first, strict=True))
            quiet_since = (quiet_since or time.monotonic()) if done and fresh else None
            records, lag = sum(merged.records.values()), sum(merged.lag.values()) if merged.lag else math.inf
            if records > most_done or lag < least_lag:
                deadline = time.monotonic() + timeout_s
                most_done, least_lag = max(most_done, records), min(least_lag, lag)
            if time.monotonic() > deadline:
                raise ServiceError(f"ingest has got no further for {timeout_s:g} s: {merged}")
            if (pause or _never.wait)(_LOOK_EVERY_S):
                return False
        return True

    def stop(self, timeout_s: float) -> None:
        """Finishes the batches that were begun, commits, leaves the group and frees the bank; repeated calls are fine.

        What is not finished within `timeout_s` seconds is not committed, and read again by the next start.
        """
        if self._stopped or not ray.is_initialized():
            return
        self._stopped = True
        deadline = time.monotonic() + timeout_s
        if self.coordinator is not None:
            self._end(self.coordinator.stop.remote(), deadline)
        stopping = [consumer.stop.remote(max(0.5, timeout_s - 2.0)) for consumer in self.consumers]
        for reference in stopping:
            self._end(reference, deadline)
        closing = [actor.close.remote() for actor in [self.writer, *self.compressors] if actor is not None]
        for reference in closing:
            self._end(reference, max(deadline, time.monotonic() + 1.0))
        self.kill()

    def kill(self) -> None:
        """Ends all actors at once. Nothing is lost: what was not committed is read again by the next start."""
        self._stopped = True
        for actor in [self.coordinator, *self.consumers, *self.compressors, self.writer]:
            if actor is not None:
                with contextlib.suppress(ValueError):
                    ray.kill(actor, no_restart=True)

    def _statuses(self) -> list[ConsumerStatus]:
        asked = [consumer.status.remote() for consumer in self.consumers]
        return [result(reference, _ANSWER_S) for reference in asked]

    @staticmethod
    def _end(reference: Any, deadline: float) -> None:
        try:
            result(reference, max(0.1, deadline - time.monotonic()))
        except (ServiceError, ValueError) as error:
            _log.warning("while ingest was stopped: %s", error)


def start_ingest(
    settings: Settings,
    bootstrap: str,
    *,
    model_factory: ModelFactory = load_cmt,
    rewind: Callable[[], None] | None = None,
) -> IngestHandle:
    """Starts the actors, and returns when the model is loaded, the bank is open and Kafka is connected.

    `model_factory` makes the compressor in its actor's process; `rewind` moves the committed offsets before anything
    is read. Raises, as themselves and with nothing left running:
    BrokerUnreachable, TopicMissing, SettingsError, BankUnavailable, BankFull, BankMismatch, and cmt_core's CoreError
    when the model can't be loaded.
    """
    RecordShape.of(settings.kafka)
    ensure_topics(settings.kafka, bootstrap)  # in this process, too: a missing broker is told before a model is loaded
    handle = IngestHandle(settings, bootstrap, hub_handle())
    try:
        _start_actors(handle, settings, bootstrap, model_factory, rewind)
    except BaseException:
        handle.kill()
        raise
    return handle


def _start_actors(
    handle: IngestHandle,
    settings: Settings,
    bootstrap: str,
    model_factory: ModelFactory,
    rewind: Callable[[], None] | None,
) -> None:
    handle.compressor_names = [compressor_name(settings) for _ in range(settings.ingest.compressors)]
    handle.compressors = [compressor_actor(settings, model_factory, name) for name in handle.compressor_names]
    layouts = [result(reference, _LOAD_S) for reference in [one.layout.remote() for one in handle.compressors]]
    handle.writer = writer_actor(settings, layouts[0])
    result(handle.writer.open.remote(), _OPEN_S)
    if rewind is not None:
        rewind()  # the bank's lock keeps a second ingest of the same bank from having its offsets moved
    handle.start_consumers()
    handle.coordinator = coordinator_actor(settings, bootstrap, handle.compressor_names, model_factory)


def _merged(statuses: Sequence[ConsumerStatus]) -> IngestStatus:
    records: Counter[str] = Counter()
    lag: dict[int, int] = {}
    for status in statuses:
        records.update(status.outcomes)
        lag.update(status.lag)
    return IngestStatus(
        running=all(status.running for status in statuses),
        records=dict(records),
        stale=sum(status.stale for status in statuses),
        lag=lag,
        in_flight_records=sum(status.in_flight_records for status in statuses),
        in_flight_bytes=sum(status.in_flight_bytes for status in statuses),
        stopped={partition: why for status in statuses for partition, why in status.stopped.items()},
        last_error=next((status.failure for status in statuses if status.failure is not None), None),
    )
