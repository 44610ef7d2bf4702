"""What the query service does for each HTTP route, apart from HTTP and from Ray: admission, statistics, readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from services.errors import BrokerError, Overloaded
from services.metrics import Metrics, Snapshot, render
from services.query.engine.messages import MODELS, Ask, Delta, Event, Failure, HitList, Overview, Reply, Versions
from services.query.gateway.admission import Admission
from services.query.gateway.completion import Kind, chat_completion, sse_chunks, text_completion
from services.query.gateway.documents import document_of, is_live
from services.query.gateway.errors import ApiError, overloaded, refusal
from services.query.gateway.events import NewsEvents
from services.query.gateway.ingest_numbers import IngestNumbers, IngestView, from_elsewhere, total
from services.query.gateway.keys import KeyRing
from services.query.gateway.requests import ChatRequest, CompletionRequest, Limits, SearchRequest
from services.query.gateway.responses import (
    ArticleInfo,
    ChatCompletion,
    DeleteAccepted,
    Document,
    IngestInfo,
    Model,
    ModelList,
    SearchHit,
    SearchResult,
    StarterList,
    Stats,
    TextCompletion,
)
from services.query.gateway.starters import Starters
from services.query.gateway.stream_look import StreamLook, look_at_kafka
from services.settings import Settings

__all__ = ["EnginePort", "QueryService", "TombstonePort"]

_FRESH_S = 0.4  # however many pages look, the bank is looked at this often
_GRACE_S = 5.0  # after its deadline an engine that says nothing counts as gone
_DESCRIPTIONS = {
    "cmt": "reads the memories of the bank, and text where its answer does not stand in its sources or takes two of them",
    "cmt-memory": "reads the memories of the bank, without their text in the prompt",
    "cmt-rag": "reads the text of the found articles in the prompt",
    "cmt-hybrid": "reads the memories, and the best article's text in the prompt",
    "cmt-closed": "answers from the LLM's own weights",
}


class EnginePort(Protocol):
    """The engine as the gateway sees it; raises ApiError 503 while it can't be reached."""

    def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer to a question piece by piece; closing the iterator cancels it."""
        ...

    async def search(self, ask: Ask) -> HitList | Failure:
        """Finds what the bank holds for a question."""
        ...

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its n latest documents."""
        ...

    async def history(self, doc_id: str, namespace: str) -> Versions | Failure:
        """Every version of a document."""
        ...

    async def ready(self) -> str | None:
        """None when questions can be answered, else why not."""
        ...


class TombstonePort(Protocol):
    """Where deletions go (`services.query.gateway.tombstones.Tombstones`)."""

    def delete(self, doc_id: str, namespace: str) -> None:
        """Blocks until the tombstone is safe. Raises BrokerError."""
        ...


class QueryService:
    """Everything behind the routes; `snapshots()` gives the metric snapshots of the other processes."""

    def __init__(
        self,
        settings: Settings,
        engine: EnginePort,
        metrics: Metrics,
        snapshots: Callable[[], Awaitable[list[Snapshot]]],
        tombstones: TombstonePort,
    ) -> None:
        serve = settings.serve
        self.options = serve
        self.keys = KeyRing(serve.api_keys, serve.rate_per_minute)
        self.events = NewsEvents(self.stats, metrics)
        self._limits = Limits(
            max_new_tokens=settings.model.max_new_tokens,
            deadline_s=serve.deadline_s,
            max_question_chars=serve.max_question_chars,
            citations=serve.citations,
        )
        self._engine = engine
        self._metrics = metrics
        self._snapshots = snapshots
        self._tombstones = tombstones
        parallel = serve.max_batch * serve.replicas
        self._admission = Admission(serve.max_queued + parallel, parallel, metrics)
        self._ingest = IngestNumbers()
        self._stream = StreamLook(lambda: look_at_kafka(settings.kafka))
        self._started_at = int(time.time())
        self._starters = Starters(serve.starters, engine.overview, engine.history, engine.search)
        self._stats: dict[tuple[int, str], tuple[float, Stats]] = {}
        self._stats_lock = asyncio.Lock()

    async def complete(
        self, kind: Kind, request: ChatRequest | CompletionRequest, key: str | None
    ) -> ChatCompletion | TextCompletion | AsyncIterator[bytes]:
        """Answers a chat or text request, whole or as server-sent events; counts it whatever happens."""
        started = time.perf_counter()
        try:
            self._spend(key)
            events = self._answer(request.ask(self._limits))
            first = await anext(events)
            if isinstance(first, Failure):
                raise refusal(first)
        except Overloaded as error:
            self._count(request.model, 429, started)
            raise overloaded(error) from None
        except ApiError as error:
            self._count(request.model, error.status, started)
            raise
        except BaseException as error:  # a bug, or the client went away, which Serve turns into a cancellation
            self._count(request.model, 499 if isinstance(error, asyncio.CancelledError) else 500, started)
            raise
        counted = self._counted(request.model, started, first, events)
        if request.stream:
            return sse_chunks(kind, request.model, counted, request.include_usage)
        return await _whole(kind, request.model, counted)

    async def _answer(self, ask: Ask) -> AsyncIterator[Event]:
        """The engine's events, while holding a place; raises Overloaded when there is none."""
        end = time.monotonic() + ask.deadline_s + _GRACE_S
        with self._admission.slot():
            async with aclosing(self._engine.ask(ask)) as events:  # type: ignore[type-var]
                while True:
                    try:
                        yield await asyncio.wait_for(anext(events), end - time.monotonic())
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        yield Failure("deadline", "the engine did not answer in time")
                        return

    async def _counted(
        self, model: str, started: float, first: Event, events: AsyncIterator[Event]
    ) -> AsyncIterator[Event]:
        """The events, first one included; a stream that ends without its last event was left by its client."""
        status = 499
        try:
            async with aclosing(events):  # type: ignore[type-var]
                yield first
                status = _status(first, status)
                async for event in events:
                    status = _status(event, status)
                    yield event
        except ApiError as error:  # the stream has begun: what is wrong can only be told inside it
            status = error.status
            yield Failure("internal", str(error))
        except Exception:
            status = 500
            raise
        finally:
            self._count(model, status, started)

    def _count(self, model: str, status: int, started: float) -> None:
        known = model if model in MODELS else "unknown"  # a label must not grow with typos
        self._metrics.count("cmt_query_requests_total", model=known, status=str(status))
        if status == 200:
            seconds = time.perf_counter() - started
            self._metrics.observe("cmt_query_seconds", seconds, model=known)
            self._admission.answered(seconds)

    def _spend(self, key: str | None) -> None:
        try:
            self.keys.spend(key)
        except Overloaded as error:
            raise overloaded(error, "rate_limit_exceeded") from None

    async def search(self, request: SearchRequest, key: str | None) -> SearchResult:
        """The best hits of a query, with their text."""
        self._spend(key)
        try:
            with self._admission.slot():
                found = await self._engine.search(request.ask(self._limits))
        except Overloaded as error:
            raise overloaded(error) from None
        if isinstance(found, Failure):
            raise refusal(found)
        names = SearchHit.model_fields
        data = [SearchHit(**{name: getattr(hit, name) for name in names}) for hit in found.hits]
        return SearchResult(data=data, bank_version=found.bank_version)

    async def document(self, doc_id: str, namespace: str) -> Document:
        """A document with its history. Raises ApiError 404 when the bank never had it."""
        found = await self._engine.history(doc_id, namespace)
        if isinstance(found, Failure):
            raise refusal(found)
        if not found.versions:
            detail = f"the bank has no document {doc_id!a} in namespace {namespace!a}"
            raise ApiError(404, detail, param="doc_id", code="document_not_found")
        return document_of(doc_id, namespace, found.versions)

    async def delete(self, doc_id: str, namespace: str, key: str | None) -> DeleteAccepted:
        """Sends a tombstone to Kafka; also for a document that is still on its way to the bank."""
        self._spend(key)
        found = await self._engine.history(doc_id, namespace)
        known = isinstance(found, Versions) and any(is_live(version) for version in found.versions)
        try:
            await asyncio.to_thread(self._tombstones.delete, doc_id, namespace)
        except BrokerError as error:
            wait = {"Retry-After": "5"}
            raise ApiError(503, str(error), type_="server_error", code="broker_unavailable", headers=wait) from None
        return DeleteAccepted(id=doc_id, namespace=namespace, known=known)

    def models(self) -> ModelList:
        """The models by name, as OpenAI lists them."""
        return ModelList(data=[self.model(name) for name in MODELS])

    def model(self, name: str) -> Model:
        """One model; raises ApiError 404."""
        about = _DESCRIPTIONS.get(name)
        if about is None:
            raise ApiError(404, f"model {name!a} does not exist", param="model", code="model_not_found")
        return Model(id=name, created=self._started_at, description=about)

    async def stats(self, n: int, namespace: str) -> Stats:
        """Bank, ingest and question numbers with the `n` latest documents; at most half a second old."""
        async with self._stats_lock:
            at, known = self._stats.get((n, namespace), (0.0, None))
            if known is None or time.monotonic() - at > _FRESH_S:
                known = await self._look(n, namespace)
                if len(self._stats) >= 32:
                    self._stats.clear()
                self._stats[n, namespace] = (time.monotonic(), known)
            return known

    async def _look(self, n: int, namespace: str) -> Stats:
        seen = await self._engine.overview(n, namespace)
        if isinstance(seen, Failure):
            raise refusal(seen)
        stats, names = seen.stats, ArticleInfo.model_fields
        return Stats(
            documents=stats.documents,
            rows=stats.rows,
            version=stats.version,
            bytes=stats.bytes,
            fragments=stats.fragments,
            first_ingested_at=stats.first_ingested_at,
            latest_ingested_at=stats.latest_ingested_at,
            latest=[ArticleInfo(**{name: getattr(document, name) for name in names}) for document in seen.latest],
            questions_answered=int(total([self._metrics.snapshot()], "cmt_query_requests_total", status="200")),
            ingest=IngestInfo(**self._ingest_view(await self._snapshots(), seen).as_dict()),
            model_id=seen.model_id,
        )

    def _ingest_view(self, snapshots: Sequence[Snapshot], seen: Overview) -> IngestView:
        view = self._ingest.update(snapshots)
        if view.running:
            return view
        stream, rate = self._stream.latest()
        return from_elsewhere(stream, rate, _freshness_s(seen))

    async def starters(self, n: int, namespace: str) -> StarterList:
        """At most `n` questions that the bank can answer."""
        try:
            with self._admission.slot():
                return StarterList(data=await self._starters.best(n, namespace))
        except Overloaded as error:
            raise overloaded(error) from None

    async def readiness(self) -> str | None:
        """None when questions can be answered, else why not."""
        try:
            return await self._engine.ready()
        except ApiError as error:
            return str(error)

    async def metrics_page(self) -> bytes:
        """The Prometheus text page of all processes."""
        snapshots: Sequence[Snapshot] = [*await self._snapshots(), self._metrics.snapshot()]
        return await asyncio.to_thread(render, snapshots)


def _freshness_s(seen: Overview) -> float | None:
    """Seconds from Kafka's time of the newest document to its commit; None for a bank without one."""
    newest = max(seen.latest, key=lambda one: one.ingested_at, default=None)
    if newest is None:
        return None
    return round(max(0.0, (newest.ingested_at - newest.record_time).total_seconds()), 3)


async def _whole(kind: Kind, model: str, events: AsyncIterator[Event]) -> ChatCompletion | TextCompletion:
    make = chat_completion if kind == "chat" else text_completion
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Failure):
                raise refusal(event)
            if isinstance(event, Reply):
                return make(model, event)
    raise ApiError(503, "the engine ended without an answer", type_="server_error", code="engine_unavailable")


def _status(event: Event, before: int) -> int:
    if isinstance(event, Delta):
        return before
    return 200 if isinstance(event, Reply) else refusal(event).status
