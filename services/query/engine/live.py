"""The engine in one process, for an event loop: answers as asynchronous streams, looks in threads."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.query.engine.hot_swap import HotSwap
from services.query.engine.messages import Ask, Delta, Event, Failure, HitList, Overview, ReplicaState, Versions

__all__ = ["LiveEngine"]

_COALESCE_S = 0.025  # one message a token would cost more than the token

T = TypeVar("T")


class LiveEngine:
    """What `services.query.gateway.service.EnginePort` asks for, on whichever scheduler `swap` has loaded."""

    def __init__(self, swap: HotSwap) -> None:
        self._swap = swap
        self._replica = uuid.uuid4().hex[:12]
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="look")

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer, its text in pieces of what was written within 25 ms; closing the iterator cancels the question."""
        loop = asyncio.get_running_loop()
        events: list[Event] = []
        came, ended = asyncio.Event(), asyncio.Event()

        def put(event: Event) -> None:
            events.append(event)
            came.set()
            if not isinstance(event, Delta):
                ended.set()

        def deliver(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(put, event)

        scheduler, ticket = self._swap.submit(ask, deliver)
        try:
            while True:
                await came.wait()
                ready, events[:] = list(events), []
                came.clear()
                if text := "".join(event.text for event in ready if isinstance(event, Delta)):
                    yield Delta(text)
                if not isinstance(ready[-1], Delta):
                    yield ready[-1]
                    return
                await _either(ended, _COALESCE_S)
        finally:
            scheduler.cancel(ticket)

    async def search(self, ask: Ask) -> HitList | Failure:
        """What the bank holds for a question, relevant or not."""
        return await self._in_thread(lambda: self._swap.current.search(ask))

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its latest documents; never waits behind the model."""
        return await self._in_thread(lambda: self._swap.current.overview(n, namespace))

    async def history(self, doc_id: str, namespace: str) -> Versions | Failure:
        """Every version of a document."""
        return await self._in_thread(lambda: self._swap.current.history(doc_id, namespace))

    @property
    def trouble(self) -> str | None:
        """Why nothing is answered here, None while the threads run."""
        return self._swap.current.trouble

    @property
    def lost(self) -> bool:
        """Whether nothing will ever be answered in this process again."""
        return self._swap.current.lost

    async def ready(self) -> str | None:
        """None when questions can be answered here, else why not."""
        if (trouble := self.trouble) is not None:
            return trouble
        seen = await self.overview(1, "default")
        return f"the bank can't be read: {seen.message}" if isinstance(seen, Failure) else None

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self._swap.current.running > 0

    def loaded(self) -> ReplicaState:
        """What answers here now."""
        swap = self._swap
        return ReplicaState(self._replica, os.getpid(), swap.revision, swap.target, swap.current.model_id, swap.error)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _either(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
