"""The query service in this process: the real engine on the lexical model and the in-memory bank, behind the real routes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from services.metrics import Metrics, Snapshot
from services.query.engine.hot_swap import HotSwap
from services.query.engine.live import LiveEngine
from services.query.engine.messages import Ask, Event
from services.query.engine.ports import AnsweringModel, MemoryReader
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.query.engine.streaming import StreamAnswerer
from services.query.gateway.api import create_api
from services.query.gateway.service import QueryService
from services.settings import Settings, load_settings
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank, window
from services.testing.streamed import StreamedLexical
from tests.waiting import until

BRIDGE = "Mayor Lund opened the bridge in Aarhus on Monday. It cost 12 million."


STREAMED = ContextVar("STREAMED", default=False)
"""Whether engines of tests stream from a model that batches by itself, as vLLM does."""


def swap_of(model: AnsweringModel, bank: MemoryReader, options: SchedulerOptions | None = None) -> HotSwap:
    options = options or SchedulerOptions(min_score=0.3)
    if isinstance(model, StreamedLexical):
        streamed = model
        return HotSwap(lambda target: StreamAnswerer(streamed, bank, options), {"llm": "lexical"})
    return HotSwap(lambda target: Scheduler(model, bank, options), {"llm": "lexical"})


def publish(
    bank: InMemoryBank,
    model: LexicalModel,
    doc_id: str,
    text: str,
    title: str | None = None,
    record_time: datetime | None = None,
    **about: Any,
) -> None:
    stored = window(doc_id, text, model.pack(text), title=title, **about)
    bank.add(model.query_keys([text]).vectors[0], stored, record_time)


class LocalEngine(LiveEngine):
    """The engine in this process; it remembers what it was asked, and waits before every answer while `gate` is shut."""

    def __init__(self, gate: asyncio.Event | None = None, options: SchedulerOptions | None = None) -> None:
        self.model: LexicalModel = StreamedLexical() if STREAMED.get() else LexicalModel()
        self.bank = InMemoryBank()
        publish(self.bank, self.model, "a-1", BRIDGE, "Bridge opens", url="https://news.example/a-1")
        super().__init__(swap_of(self.model, self.bank, options))
        self.asked: list[Ask] = []
        self._gate = gate

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        self.asked.append(ask)
        if self._gate is not None:
            await self._gate.wait()
        async for event in super().ask(ask):
            yield event


class SentTombstones:
    """Where deletions go when the test is not about Kafka."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def delete(self, doc_id: str, namespace: str) -> None:
        self.sent.append((namespace, doc_id))


async def no_snapshots() -> list[Snapshot]:
    return []


def api_of(
    engine: LiveEngine,
    settings: Settings | None = None,
    snapshots: Callable[[], Any] = no_snapshots,
    tombstones: SentTombstones | None = None,
) -> FastAPI:
    settings = settings or load_settings()
    return create_api(QueryService(settings, engine, Metrics(), snapshots, tombstones or SentTombstones()))


def client_of(engine: LiveEngine, settings: Settings | None = None, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(api_of(engine, settings, **options))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


class Served:
    """An application on a real port, in a thread."""

    def __init__(self, api: FastAPI) -> None:
        self._server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="critical"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True  # event streams never end by themselves
        self._thread.join(timeout=10)


def day(number: int) -> datetime:
    return datetime(2026, 5, number, tzinfo=UTC)
