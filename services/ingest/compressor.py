"""Turns documents into chunks with a model: a plain class, and as the last line a Ray actor."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any

import ray

from services.bank.records import Chunk
from services.bank.schema import BankLayout
from services.errors import RecordError
from services.ingest.ports import Compressor, ModelFactory
from services.ingest.stages import StagedCompressor
from services.metrics import Metrics
from services.metrics_hub import HUB_NAMESPACE, MetricsPusher
from services.settings import Settings
from services.threads import use_all_cores

__all__ = ["CompressorWorker", "compressor_actor"]

_CALLS = 16
_CPU_TOKENS, _GPU_TOKENS = 2048, 32_768


class CompressorWorker:
    """Holds the model, which is loaded when it is first needed, so that its error reaches the caller as itself."""

    def __init__(self, settings: Settings, model_factory: ModelFactory, metrics: Metrics) -> None:
        self._settings = settings
        self._model_factory = model_factory
        self._metrics = metrics
        self._lock = threading.Lock()
        self._model: Compressor | None = None
        self._stages: StagedCompressor | None = None

    def layout(self) -> BankLayout:
        """The layout of the bank that this model writes."""
        model = self._loaded()
        return BankLayout(model.model_id, model.d_key, model.memory_bytes)

    def compress(self, documents: Sequence[tuple[str, str]]) -> list[list[Chunk] | RecordError]:
        """The chunks of each (title, text), none for a text without words; a RecordError for what can't be compressed."""
        self._loaded()
        assert self._stages is not None
        return self._stages.compress(documents)

    def close(self) -> None:
        """Ends the threads."""
        if self._stages is not None:
            self._stages.close()

    def _loaded(self) -> Compressor:
        with self._lock:
            if self._model is None:
                model = self._model_factory(self._settings)
                ingest = self._settings.ingest
                tokens = ingest.batch_tokens or (_GPU_TOKENS if ingest.compressor_gpus else _CPU_TOKENS)
                self._stages = StagedCompressor(model, self._metrics, tokens)
                self._model = model
            return self._model


class _CompressorActor(CompressorWorker):
    """The worker in a Ray actor: with the machine's cores, and metrics that reach the hub."""

    def __init__(self, settings: Settings, model_factory: ModelFactory) -> None:
        use_all_cores(settings.ingest.compressor_gpus, sharing=min(settings.ingest.compressors, _fit_here()))
        metrics = Metrics()
        super().__init__(settings, model_factory, metrics)
        self._pusher = MetricsPusher(f"compressor-{uuid.uuid4().hex[:12]}", metrics)

    def close(self) -> None:
        """Ends the threads and sends the last metrics."""
        super().close()
        self._pusher.stop()


def _fit_here() -> int:
    """How many compressors Ray would put on this node, by its logical CPUs."""
    here = ray.get_runtime_context().get_node_id()
    return max([1, *(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["NodeID"] == here)])


def compressor_actor(settings: Settings, model_factory: ModelFactory, name: str) -> Any:
    """The handle of a new compressor actor, which Ray starts again when it dies; its callers decide on repeats.

    Several calls at once share the model's batches. Ray fills one node to its half before it takes another: told to spread,
    it leaves ingest a compressor where a node dies, and each replica of the query service a node.
    """
    gpus = settings.ingest.compressor_gpus
    options = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus, "max_restarts": -1, "max_concurrency": _CALLS}
    actor = ray.remote(_CompressorActor).options(
        name=name, namespace=HUB_NAMESPACE, scheduling_strategy="SPREAD", **options
    )
    return actor.remote(settings, model_factory)
