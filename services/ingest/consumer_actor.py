"""The consumer as a Ray actor: it starts by itself, also when Ray starts it again after a crash."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

import ray

from services.ingest.consumer import Consumer
from services.ingest.remote import RemoteCompress, RemoteEpoch, RemoteWrite
from services.metrics import Metrics
from services.metrics_hub import MetricsPusher
from services.settings import Settings
from services.stream.dead_letters import DeadLetters
from services.stream.source import KafkaSource

__all__ = ["consumer_actor"]

_RETRY_FOR_S = 30.0


class _ConsumerActor(Consumer):
    """The consumer on the real Kafka, with the actors of this ingest as its compressor and bank."""

    def __init__(self, settings: Settings, bootstrap: str, compressors: Sequence[Any], writer: Any) -> None:
        metrics, kafka = Metrics(), settings.kafka
        super().__init__(
            settings,
            lambda on_revoked: KafkaSource(kafka, bootstrap, on_revoked),
            lambda: DeadLetters(kafka, bootstrap),
            RemoteCompress(compressors),
            RemoteWrite(writer),
            RemoteEpoch(kafka, bootstrap, writer),
            metrics,
            depth=1 + math.ceil(settings.ingest.compressors / settings.ingest.consumers),
            retry_for_s=_RETRY_FOR_S,
        )
        self._pusher = MetricsPusher(f"consumer-{uuid.uuid4().hex[:12]}", metrics)
        self.start()

    def stop(self, timeout_s: float) -> bool:
        """As the consumer's own, and sends the last metrics."""
        stopped = super().stop(timeout_s)
        self._pusher.stop()
        return stopped


def consumer_actor(settings: Settings, bootstrap: str, compressors: Sequence[Any], writer: Any) -> Any:
    """The handle of a new consumer actor, which Ray starts again when it dies; its methods answer at any time."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 4}
    return ray.remote(_ConsumerActor).options(**options).remote(settings, bootstrap, compressors, writer)
