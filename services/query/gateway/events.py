"""Tells open pages what arrives: one look at the bank for all of them, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from services.errors import Overloaded
from services.metrics import Metrics
from services.query.gateway.errors import ApiError
from services.query.gateway.responses import ArticleInfo, Stats

__all__ = ["NewsEvents"]

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
_HEARTBEAT_S = 10.0  # a proxy or a dead connection is noticed by then
_REMEMBERED = 100  # articles a listener is told at most for one look
MOST_LISTENERS = 200


class NewsEvents:
    """`article` events for documents that came in, oldest first, and `stats` events when a number has changed.

    `look(n, namespace)` gives the statistics with the n latest documents; it is cheap when asked often. An article's event
    id is its ingest time, with which a listener that was cut off goes on (`Last-Event-ID`).
    """

    def __init__(self, look: Callable[[int, str], Awaitable[Stats]], metrics: Metrics) -> None:
        self._look = look
        self._metrics = metrics
        self._listeners = 0

    async def listen(self, namespace: str, last_id: str | None = None) -> AsyncIterator[bytes]:
        """Events until the listener goes away. Raises Overloaded when there are too many, ApiError when nothing can be seen."""
        if self._listeners >= MOST_LISTENERS:
            raise Overloaded(f"{self._listeners} listeners are connected", 10)
        first = await self._look(_REMEMBERED, namespace)
        return self._events(namespace, first, last_id or _newest(first))

    async def _events(self, namespace: str, seen: Stats, known: str) -> AsyncIterator[bytes]:
        self._count(+1)
        try:
            told: dict[str, object] = {}
            looked: Stats | None = seen
            sent_s = time.monotonic()
            yield b"retry: 2000\n\n"
            while True:
                if looked is not None:
                    for event in self._news(looked, known, told):
                        yield event
                        sent_s = time.monotonic()
                    known, told = max(known, _newest(looked)), _numbers(looked)
                if time.monotonic() - sent_s > _HEARTBEAT_S:
                    yield b": still here\n\n"
                    sent_s = time.monotonic()
                await asyncio.sleep(_LOOK_S)
                try:
                    looked = await self._look(_REMEMBERED, namespace)
                    continue
                except ApiError as error:
                    yield _event("problem", {"message": str(error), "status": error.status})
                except Exception as error:  # noqa: BLE001 - the page is told, and the next look may succeed
                    _log.warning("a look for the event streams failed: %s", type(error).__name__)
                    yield _event("problem", {"message": f"internal error: {type(error).__name__}", "status": 500})
                looked, told = None, {}  # the numbers are told again with the next look, even where none has changed
        finally:
            self._count(-1)

    def _news(self, seen: Stats, known: str, told: dict[str, object]) -> list[bytes]:
        fresh = [article for article in reversed(seen.latest) if _moment(article) > known]
        events = [_event("article", article.model_dump(mode="json"), _moment(article)) for article in fresh]
        numbers = _numbers(seen)
        return [*events, _event("stats", numbers)] if numbers != told else events

    def _count(self, step: int) -> None:
        self._listeners += step
        self._metrics.gauge("cmt_query_event_listeners", self._listeners)


def _numbers(stats: Stats) -> dict[str, object]:
    numbers: dict[str, object] = stats.model_dump(mode="json", exclude={"latest"})
    return numbers


def _newest(stats: Stats) -> str:
    return max((_moment(article) for article in stats.latest), default="")


def _moment(article: ArticleInfo) -> str:
    return article.ingested_at.isoformat(timespec="microseconds") if article.ingested_at else ""


def _event(name: str, data: object, id_: str = "") -> bytes:
    head = f"event: {name}\n" + (f"id: {id_}\n" if id_ else "")
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
