"""Compresses documents in three stages, each in threads of its own with bounded queues between.

pre    in the caller's thread: split the document into windows
core   one thread: batches of like length, small documents first, through the model, which is not thread-safe
post   one thread: chunks from the model's numbers, and the callers woken
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from services.bank.records import Chunk
from services.errors import RecordError, WorkerLost, is_panic
from services.ingest.ports import Compressor
from services.ingest.token_batches import QueuedDocument, QueuedWindow, TokenQueue
from services.metrics import Metrics
from services.supervision import ServiceThread

__all__ = ["StagedCompressor", "is_out_of_memory"]

_log = logging.getLogger(__name__)
_POST_BATCHES = 2
_CLOSED = "the compressor is closed"

Compressed = list[Chunk] | RecordError


@dataclass(slots=True)
class _Call:
    """One call of `compress`: results by window, and how many are missing."""

    missing: int
    done: threading.Event = field(default_factory=threading.Event)
    results: dict[tuple[int, int], Chunk | RecordError] = field(default_factory=dict)
    failure: BaseException | None = None


class StagedCompressor:
    """May be called from many threads; their windows share batches of at most `batch_tokens` tokens."""

    def __init__(self, model: Compressor, metrics: Metrics, batch_tokens: int) -> None:
        self._model = model
        self._metrics = metrics
        self._queue = TokenQueue(batch_tokens)
        self._post: queue.Queue[tuple[list[QueuedWindow], list[Any]] | None] = queue.Queue(_POST_BATCHES)
        self._in_core: list[QueuedWindow] = []
        self._in_post: list[QueuedWindow] = []
        self._core = ServiceThread("compress-core", self._run_core, metrics, failed=lambda e: _fail(self._in_core, e))
        post = ServiceThread("compress-post", self._run_post, metrics, failed=lambda e: _fail(self._in_post, e))
        self._threads = [self._core.start(), post.start()]

    def compress(self, documents: Sequence[tuple[str, str]]) -> list[Compressed]:
        """The chunks of each (title, text), none for a text without words; a RecordError for what can't be compressed.

        The reasons: `unstorable` when the model refuses the text or can't split it, `out_of_memory` when a window alone
        is too much for the device. Raises what else the model raises, and WorkerLost when this is closed.
        """
        started = time.perf_counter()
        split = [self._windows(title, text) for title, text in documents]
        self._metrics.observe("cmt_ingest_stage_seconds", time.perf_counter() - started, stage="pre")
        call = _Call(sum(len(own) for own in split if isinstance(own, list)))
        if call.missing:
            for number, own in enumerate(split):
                if isinstance(own, list):
                    document = QueuedDocument(len(own))
                    waiting = [QueuedWindow(window, document, (call, (number, window.number))) for window in own]
                    if not self._queue.put(waiting):
                        raise WorkerLost(_CLOSED)
            call.done.wait()
        if call.failure is not None:
            raise call.failure
        return [_gathered(call, number, own) for number, own in enumerate(split)]

    def close(self) -> None:
        """Ends the threads after the batch that is read now; callers whose windows still wait are told (WorkerLost)."""
        _fail(self._queue.close(), WorkerLost(_CLOSED))
        for thread in self._threads:
            thread.join(5.0)

    def _windows(self, title: str, text: str) -> list[Any] | RecordError:
        try:
            return list(self._model.windows(title, text))
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            return _refused(error)

    def _run_core(self) -> None:
        while batch := self._queue.take():
            self._in_core = batch
            started = time.perf_counter()
            try:
                with self._core.at_work():
                    results = self._read(batch)
            except Exception as error:  # noqa: BLE001 - it belongs to the callers, and the next batch may be fine
                _fail(batch, error)
                continue
            seconds = time.perf_counter() - started
            self._queue.learn(batch, seconds)
            self._measure(batch, results, seconds)
            self._post.put((batch, results))
        self._post.put(None)

    def _read(self, batch: Sequence[QueuedWindow]) -> list[Any]:
        """(key, tokens, memory) of every window, or why there is none; halves the batch when it is too much, or one is bad."""
        try:
            windows = [one.window for one in batch]
            memories = self._model.compress(windows)
            keys = self._model.document_keys(windows)
            return list(zip(keys.vectors, keys.tokens, memories, strict=True))
        except BaseException as error:
            too_much = is_out_of_memory(error)
            if not too_much and not _is_its_own(error):
                raise
            if len(batch) == 1:
                return [_too_large(error) if too_much else _refused(error)]
            if too_much:
                self._give_memory_back(len(batch))
        half = len(batch) // 2
        return self._read(batch[:half]) + self._read(batch[half:])

    def _give_memory_back(self, windows: int) -> None:
        self._queue.halve_budget()
        _log.warning("out of memory with %d windows: batches are %d tokens now", windows, self._queue.budget_tokens)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run_post(self) -> None:
        while (item := self._post.get()) is not None:
            self._in_post = item[0]
            started = time.perf_counter()
            for waiting, result in zip(*item, strict=True):
                call, place = waiting.slot
                if not isinstance(result, RecordError):
                    key, key_tokens, memory = result
                    result = Chunk(waiting.window.text, key, memory.code, memory.n_tokens, key_tokens)
                call.results[place] = result
                call.missing -= 1
                if not call.missing:
                    call.done.set()
            self._metrics.observe("cmt_ingest_stage_seconds", time.perf_counter() - started, stage="post")

    def _measure(self, batch: Sequence[QueuedWindow], results: Sequence[Any], seconds: float) -> None:
        tokens = sum(result[-1].n_tokens for result in results if not isinstance(result, RecordError))
        self._metrics.count("cmt_ingest_windows_total", len(batch))
        self._metrics.count("cmt_ingest_tokens_total", tokens)
        self._metrics.observe("cmt_ingest_batch_windows", len(batch))
        self._metrics.observe("cmt_ingest_batch_tokens", tokens)
        fill = sum(one.tokens for one in batch) / (len(batch) * max(one.tokens for one in batch))
        self._metrics.observe("cmt_ingest_batch_fill_ratio", fill)
        self._metrics.observe("cmt_ingest_compress_seconds", seconds)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had too little memory for a batch."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _gathered(call: _Call, number: int, own: list[Any] | RecordError) -> Compressed:
    if isinstance(own, RecordError):
        return own
    results = [call.results[number, window.number] for window in own]
    bad = next((result for result in results if isinstance(result, RecordError)), None)
    return bad or [result for result in results if isinstance(result, Chunk)]


def _fail(batch: Sequence[QueuedWindow], error: BaseException) -> None:
    """Wakes the callers of a batch; an error such as SystemExit would end whoever it is raised in, so that it becomes another."""
    for call in {id(one.slot[0]): one.slot[0] for one in batch}.values():
        call.failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        call.done.set()


def _is_its_own(error: BaseException) -> bool:
    """Whether the text is at fault, and not the model."""
    return isinstance(error, ValueError) or is_panic(error)


def _refused(error: BaseException) -> RecordError:
    return RecordError("unstorable", " ".join(str(error).split())[:300] or "the document can't be stored")


def _too_large(error: BaseException) -> RecordError:
    return RecordError("out_of_memory", " ".join(str(error).split())[:300] or "the document needs too much memory")
