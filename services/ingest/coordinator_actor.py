"""The coordinator as a named Ray actor, with Ray's actors as its consumers and compressors."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray

from services.errors import ServiceError
from services.ingest.compressor import compressor_actor
from services.ingest.consumer import ConsumerStatus
from services.ingest.coordinator import Coordinator, CoordinatorStatus, TopicState
from services.ingest.names import actor_or_none, compressor_name, consumer_name, coordinator_name
from services.ingest.pool_policy import PoolPolicy
from services.ingest.ports import ModelFactory
from services.ingest.remote import result
from services.metrics import Metrics
from services.metrics_hub import HUB_NAMESPACE, MetricsPusher
from services.settings import Settings
from services.stream.topic_identity import topic_identity
from services.stream.topics import topic_partitions
from services.supervision import ServiceThread

__all__ = ["IngestCoordinator", "coordinator_actor"]

_log = logging.getLogger(__name__)
_TICK_S = 0.5


class _RemoteMember:
    """A consumer actor. Its calls are not repeated: a dead one has to look dead."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def ask(self) -> Callable[[float], ConsumerStatus | None]:
        reference = self.actor.status.options(max_task_retries=0).remote()

        def answer(timeout_s: float) -> ConsumerStatus | None:
            ready, _ = ray.wait([reference], timeout=timeout_s)
            status: ConsumerStatus | None = result(reference) if ready else None
            return status

        return answer

    def assign(self, partitions: Iterable[int], topic_id: str) -> None:
        self.actor.assign.options(max_task_retries=0).remote(list(partitions), topic_id)

    def kill(self) -> None:
        with contextlib.suppress(ValueError):
            ray.kill(self.actor, no_restart=False)


class _RemotePool:
    """The compressors that ingest was started with, which stay, and those that were added since."""

    def __init__(self, settings: Settings, model_factory: ModelFactory, base: Sequence[str]) -> None:
        self._settings, self._model_factory = settings, model_factory
        self._base = list(base)
        self._ready: dict[str, Any] = {}
        self._loading: list[tuple[str, Any, Any]] = []
        self._leaving: list[Any] = []
        self._told: list[Any] = []
        self._touched = False

    def size(self) -> int:
        return len(self._base) + len(self._ready) + len(self._loading)

    def resize(self, size: int) -> None:
        while self.size() < size:
            name = compressor_name(self._settings)
            actor = compressor_actor(self._settings, self._model_factory, name)
            self._loading.append((name, actor, actor.layout.remote()))
            _log.info("the pool grows to %d compressors", self.size())
        while self.size() > max(size, len(self._base)):
            actor = self._loading.pop()[1] if self._loading else self._ready.popitem()[1]
            self._leaving.append(actor)
            _log.info("the pool shrinks to %d compressors", self.size())

    def refresh(self, members: Iterable[str]) -> int:
        self._take_ready()
        pool = [*self._base, *self._ready]
        self._touched = self._touched or len(pool) > len(self._base)
        for name in members if self._touched else ():  # again and again: a consumer that was restarted knows the base
            if (actor := actor_or_none(name)) is not None:
                actor.use_compressors.options(max_task_retries=0).remote(pool)
        for told in self._told:  # at the last look; the calls that it still had are repeated on others
            ray.kill(told, no_restart=True)
        self._told, self._leaving = self._leaving, []
        return len(pool)

    def _take_ready(self) -> None:
        layouts = [layout for *_, layout in self._loading]
        ready, _ = ray.wait(layouts, num_returns=len(layouts), timeout=0) if layouts else ([], [])
        for name, actor, layout in [one for one in self._loading if one[2] in ready]:
            self._loading.remove((name, actor, layout))
            try:
                result(layout)
            except ServiceError as error:
                _log.warning("a compressor could not be added: %s", error)
            else:
                self._ready[name] = actor


class IngestCoordinator:
    """The coordinator with its thread, in an actor that Ray starts again when it dies."""

    def __init__(
        self, settings: Settings, bootstrap: str, compressors: Sequence[str], model_factory: ModelFactory
    ) -> None:
        self._settings, self._bootstrap = settings, bootstrap
        self._metrics = Metrics()
        ingest = settings.ingest
        self._coordinator = Coordinator(
            self._topic_state,
            self._members,
            _RemotePool(settings, model_factory, compressors),
            PoolPolicy(len(compressors), ingest.max_compressors or len(compressors), ingest.grow_at_lag_records),
            self._metrics,
            assigns=ingest.assignment == "coordinator",
            consumer_timeout_s=ingest.consumer_timeout_s,
        )
        self._metrics.count("cmt_pool_reassignments_total", 0)
        self._pusher = MetricsPusher(f"coordinator-{uuid.uuid4().hex[:12]}", self._metrics)
        self._stopping = threading.Event()
        self._thread = ServiceThread("ingest-coordinator", self._run, self._metrics)
        self._thread.start()

    def status(self) -> CoordinatorStatus:
        """What the last look saw."""
        return self._coordinator.status()

    def stop(self) -> None:
        """Ends it; the consumers keep what they read."""
        self._stopping.set()
        self._thread.join(10.0)
        self._pusher.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._thread.at_work():
                self._coordinator.tick()  # what fails here is looked at again, as the thread's supervisor does it
            self._thread.worked()
            self._stopping.wait(_TICK_S)

    def _topic_state(self) -> TopicState:
        kafka = self._settings.kafka
        partitions = topic_partitions(kafka, self._bootstrap, kafka.topic)
        return TopicState(topic_identity(kafka, self._bootstrap), partitions)

    def _members(self) -> Mapping[str, _RemoteMember]:
        prefix = consumer_name(self._settings, 0).removesuffix("0")
        named = ray.util.list_named_actors(all_namespaces=True)
        names = sorted(
            one["name"] for one in named if one["namespace"] == HUB_NAMESPACE and one["name"].startswith(prefix)
        )
        found = {name: actor_or_none(name) for name in names}
        return {name: _RemoteMember(actor) for name, actor in found.items() if actor is not None}


def coordinator_actor(
    settings: Settings, bootstrap: str, compressors: Sequence[str], model_factory: ModelFactory
) -> Any:
    """The handle of a new coordinator actor, which Ray starts again when it dies; `compressors` are names."""
    options = {"name": coordinator_name(settings), "namespace": HUB_NAMESPACE, "num_cpus": 0}
    actor = ray.remote(IngestCoordinator).options(**options, max_restarts=-1, max_task_retries=-1, max_concurrency=4)
    return actor.remote(settings, bootstrap, list(compressors), model_factory)
