"""The consumer as a Ray actor: it starts by itself, also when Ray starts it again after a crash."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray

from services.errors import WorkerLost
from services.ingest.consumer import Consumer
from services.ingest.names import actor_or_none, writer_name
from services.ingest.ports import RecordSource
from services.ingest.remote import RemoteCompress, RemoteEpoch, RemoteWrite
from services.metrics import Metrics
from services.metrics_hub import HUB_NAMESPACE, MetricsPusher
from services.settings import Settings
from services.stream.dead_letters import DeadLetters
from services.stream.source import AssignedSource, KafkaSource

__all__ = ["consumer_actor"]


class _ConsumerActor(Consumer):
    """The consumer on the real Kafka, with the actors of this ingest as its compressor and bank."""

    def __init__(self, settings: Settings, bootstrap: str, compressors: Sequence[str], name: str) -> None:
        writer = actor_or_none(writer_name(settings))
        if writer is None:
            raise WorkerLost(f"bank {settings.bank.uri} has no writer any more")
        metrics, kafka, ingest = Metrics(), settings.kafka, settings.ingest

        def open_source(on_revoked: Callable[[set[int]], None]) -> RecordSource:
            if ingest.assignment == "coordinator":
                return AssignedSource(kafka, bootstrap)
            return KafkaSource(kafka, bootstrap, on_revoked, member=name)

        self._compressors = RemoteCompress(compressors)
        most = max(ingest.compressors, ingest.max_compressors or 0)
        super().__init__(
            settings,
            open_source,
            lambda: DeadLetters(kafka, bootstrap),
            self._compressors,
            RemoteWrite(writer),
            RemoteEpoch(kafka, bootstrap, writer),
            metrics,
            depth=ingest.batches_at_once or 2 + math.ceil(most / ingest.consumers),
            retry_for_s=ingest.retry_for_s,
        )
        self._pusher = MetricsPusher(f"consumer-{uuid.uuid4().hex[:12]}", metrics)
        self.start()

    def use_compressors(self, names: Sequence[str]) -> None:
        """The compressor pool from now on, by name."""
        self._compressors.use(names)

    def stop(self, timeout_s: float) -> bool:
        """As the consumer's own, and sends the last metrics."""
        stopped = super().stop(timeout_s)
        self._pusher.stop()
        return stopped


def consumer_actor(settings: Settings, bootstrap: str, compressors: Sequence[str], name: str) -> Any:
    """The handle of a new consumer actor, which Ray starts again when it dies; its methods answer at any time.

    `compressors` are names of actors, and the writer is found by its own; `name` is how the coordinator finds the
    consumer, and its name in a consumer group.
    """
    options: dict[str, Any] = {"name": name, "namespace": HUB_NAMESPACE, "num_cpus": 0, "max_concurrency": 8}
    actor = ray.remote(_ConsumerActor).options(**options, max_restarts=-1, max_task_retries=-1)
    return actor.remote(settings, bootstrap, list(compressors), name)
