"""Turns documents into chunks with a model: a plain class, and as the last line a Ray actor."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray

from services.bank.schema import BankLayout, Chunk
from services.ingest.ports import Compressor, ModelFactory
from services.metrics import Metrics
from services.metrics_hub import MetricsPusher
from services.settings import Settings
from services.threads import use_all_cores

__all__ = ["CompressorWorker", "compressor_actor"]


class CompressorWorker:
    """Holds the model, which is loaded when it is first needed, so that its error reaches the caller as itself."""

    def __init__(self, settings: Settings, model_factory: ModelFactory, metrics: Metrics) -> None:
        self._settings = settings
        self._model_factory = model_factory
        self._metrics = metrics
        self._lock = threading.Lock()
        self._model: Compressor | None = None

    def layout(self) -> BankLayout:
        """The layout of the bank that this model writes."""
        model = self._loaded()
        return BankLayout(model.model_id, model.d_key, model.memory_bytes)

    def compress(self, documents: Sequence[tuple[str, str]]) -> list[list[Chunk]]:
        """The chunks of each (title, text); none for a text without words.

        Raises ValueError when one of the documents can't be compressed; it does not say which.
        """
        model = self._loaded()
        started = time.perf_counter()
        split = [model.windows(title, text) for title, text in documents]
        windows = [window for own in split for window in own]
        if not windows:
            return [[] for _ in documents]
        memories, keys = model.compress(windows), model.document_keys(windows)
        chunks = [
            Chunk(window.text, key, memory.code, memory.n_tokens)
            for window, key, memory in zip(windows, keys, memories, strict=True)
        ]
        self._measure(chunks, time.perf_counter() - started)
        rest = iter(chunks)
        return [[next(rest) for _ in own] for own in split]

    def _measure(self, chunks: Sequence[Chunk], seconds: float) -> None:
        self._metrics.count("cmt_ingest_windows_total", len(chunks))
        self._metrics.count("cmt_ingest_tokens_total", sum(chunk.n_tokens for chunk in chunks))
        self._metrics.observe("cmt_ingest_batch_windows", len(chunks))
        self._metrics.observe("cmt_ingest_compress_seconds", seconds)

    def _loaded(self) -> Compressor:
        with self._lock:
            if self._model is None:
                self._model = self._model_factory(self._settings)
            return self._model


class _CompressorActor(CompressorWorker):
    """The worker in a Ray actor: with the machine's cores, and metrics that reach the hub."""

    def __init__(self, settings: Settings, model_factory: ModelFactory) -> None:
        use_all_cores(settings.ingest.compressor_gpus, sharing=settings.ingest.compressors)
        metrics = Metrics()
        super().__init__(settings, model_factory, metrics)
        self._pusher = MetricsPusher(f"compressor-{uuid.uuid4().hex[:12]}", metrics)

    def close(self) -> None:
        """Sends the last metrics."""
        self._pusher.stop()


def compressor_actor(settings: Settings, model_factory: ModelFactory) -> Any:
    """The handle of a new compressor actor, which Ray starts again when it dies; a call is repeated up to 3 times."""
    gpus = settings.ingest.compressor_gpus
    options = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 3}
    return ray.remote(_CompressorActor).options(**options).remote(settings, model_factory)
