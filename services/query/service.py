"""What the query service does for each HTTP route, apart from HTTP and from Ray: admission, statistics, readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from services.errors import Overloaded
from services.metrics import Metrics, Snapshot, render
from services.query.admission import Admission
from services.query.engine import MODELS, Ask, Failure, Found, Overview, Reply
from services.query.ingest_numbers import IngestNumbers, total
from services.query.schema import ApiError, ChatRequest, SearchRequest, completion
from services.settings import Settings

__all__ = ["EnginePort", "QueryService", "refusal"]

_FRESH_S = 0.5  # however many pages poll, the bank is looked at this often
_DESCRIPTIONS = {
    "cmt": "reads the memories of the bank, without their text in the prompt",
    "cmt-rag": "reads the text of the found articles in the prompt",
    "cmt-closed": "answers from the LLM's own weights",
}


class EnginePort(Protocol):
    """The engine as the gateway sees it; raises ApiError 503 while it can't be reached."""

    async def ask(self, ask: Ask) -> Reply | Failure:
        """Answers a question."""
        ...

    async def search(self, ask: Ask) -> Found | Failure:
        """Finds what the bank holds for a question."""
        ...

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its n latest documents."""
        ...


class QueryService:
    """Everything behind the routes; `snapshots()` gives the metric snapshots of the other processes."""

    def __init__(
        self,
        settings: Settings,
        engine: EnginePort,
        metrics: Metrics,
        snapshots: Callable[[], Awaitable[list[Snapshot]]],
    ) -> None:
        serve = settings.serve
        self.api_key = serve.api_key.get_secret_value() if serve.api_key else None
        self._max_new_tokens = settings.model.max_new_tokens
        self._engine = engine
        self._metrics = metrics
        self._snapshots = snapshots
        parallel = serve.max_batch * serve.replicas
        self._admission = Admission(serve.max_queued + parallel, parallel, metrics)
        self._ingest = IngestNumbers()
        self._started_at = int(time.time())
        self._stats: dict[tuple[int, str], tuple[float, dict[str, Any]]] = {}
        self._stats_lock = asyncio.Lock()

    async def chat(self, request: ChatRequest) -> dict[str, Any]:
        """Answers a chat request; counts it whatever happens."""
        started = time.perf_counter()
        status = 500
        try:
            reply = await self._answer(request.ask(self._max_new_tokens))
            status = 200
            return completion(request, reply)
        except ApiError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = 499  # the client went away; Serve cancels the question in the engine's queue too
            raise
        finally:
            model = request.model if request.model in MODELS else "unknown"  # a label must not grow with typos
            self._metrics.count("cmt_query_requests_total", model=model, status=str(status))
            if status == 200:
                seconds = time.perf_counter() - started
                self._metrics.observe("cmt_query_seconds", seconds, model=model)
                self._admission.answered(seconds)

    async def _answer(self, ask: Ask) -> Reply:
        try:
            with self._admission.slot():
                outcome = await self._engine.ask(ask)
        except Overloaded as error:
            raise _overloaded(error) from None
        if isinstance(outcome, Failure):
            raise refusal(outcome)
        return outcome

    async def search(self, request: SearchRequest) -> dict[str, Any]:
        """The best hits of a query, with their text."""
        ask = Ask(request.query, top_k=request.top_k, namespace=request.namespace, as_of=request.as_of)
        try:
            with self._admission.slot():
                found = await self._engine.search(ask)
        except Overloaded as error:
            raise _overloaded(error) from None
        if isinstance(found, Failure):
            raise refusal(found)
        names = ("doc_id", "chunk_no", "title", "url", "source", "published_at", "ingested_at", "score", "text")
        data = [{name: getattr(hit, name) for name in names} for hit in found.hits]
        return {"object": "list", "data": data, "bank_version": found.bank_version}

    def models(self) -> dict[str, Any]:
        """The models by name, as OpenAI lists them."""
        return {"object": "list", "data": [self.model(name) for name in MODELS]}

    def model(self, name: str) -> dict[str, Any]:
        """One model; raises ApiError 404."""
        if name not in MODELS:
            raise ApiError(404, f"model {name!r} does not exist", param="model", code="model_not_found")
        about = _DESCRIPTIONS[name]
        return {"id": name, "object": "model", "created": self._started_at, "owned_by": "cmt", "description": about}

    async def stats(self, n: int, namespace: str) -> dict[str, Any]:
        """Bank, ingest and question numbers with the `n` latest documents; at most half a second old."""
        async with self._stats_lock:
            at, known = self._stats.get((n, namespace), (0.0, {}))
            if not known or time.monotonic() - at > _FRESH_S:
                known = await self._look(n, namespace)
                if len(self._stats) >= 32:
                    self._stats.clear()
                self._stats[n, namespace] = (time.monotonic(), known)
            return known

    async def _look(self, n: int, namespace: str) -> dict[str, Any]:
        seen = await self._engine.overview(n, namespace)
        if isinstance(seen, Failure):
            raise refusal(seen)
        own = self._metrics.snapshot()
        stats = seen.stats
        names = ("doc_id", "title", "url", "source", "published_at", "ingested_at", "chunks", "updated")
        return {
            "documents": stats.documents,
            "rows": stats.rows,
            "version": stats.version,
            "bytes": stats.bytes,
            "fragments": stats.fragments,
            "latest_ingested_at": stats.latest_ingested_at,
            "latest": [{name: getattr(document, name) for name in names} for document in seen.latest],
            "questions_answered": int(total([own], "cmt_query_requests_total", status="200")),
            "ingest": self._ingest.update(await self._snapshots()).as_dict(),
            "model_id": seen.model_id,
        }

    async def readiness(self) -> str | None:
        """None when questions can be answered, else why not."""
        try:
            seen = await self._engine.overview(1, "default")
        except ApiError as error:
            return str(error)
        return f"the bank can't be read: {seen.message}" if isinstance(seen, Failure) else None

    async def metrics_page(self) -> bytes:
        """The Prometheus text page of all processes."""
        snapshots: Sequence[Snapshot] = [*await self._snapshots(), self._metrics.snapshot()]
        return await asyncio.to_thread(render, snapshots)


def refusal(failure: Failure) -> ApiError:
    """The HTTP form of a failure."""
    match failure.kind:
        case "question":
            return ApiError(400, f"the question can't be answered: {failure.message}", param="messages")
        case "bank":
            return ApiError(
                503, failure.message, type_="server_error", code="bank_unavailable", headers={"Retry-After": "2"}
            )
        case _:
            return ApiError(500, failure.message, type_="server_error", code="internal_error")


def _overloaded(error: Overloaded) -> ApiError:
    wait = {"Retry-After": str(int(error.retry_after_s))}
    return ApiError(429, str(error), type_="rate_limit_error", code="queue_full", headers=wait)
