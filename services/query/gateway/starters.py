"""Questions to begin with: of each it was tried, right before it is offered, that the bank finds something to answer from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from services.query.engine.messages import Ask, Failure, HitList, Overview, Versions
from services.query.gateway.conversation import lookups_of
from services.query.gateway.documents import is_live
from services.query.gateway.errors import refusal
from services.query.gateway.responses import StarterInfo
from services.query.gateway.starter_questions import question_of

__all__ = ["Starters"]

_LATEST = 40  # articles of which a question may be made
_MOST_TRIES = 12  # questions that are looked up for one list
_FRESH_S = 20.0  # a list is looked up at most so often, however many pages are open
_KEPT = 32  # namespaces whose lists are kept


class Starters:
    """Lists of questions that the bank can answer: those of the settings first, then ones made of the latest articles.

    A question counts when what is found for it is relevant enough to be answered from, and is the very article that it was
    made of. Belongs to one event loop.
    """

    def __init__(
        self,
        given: Sequence[str],
        overview: Callable[[int, str], Awaitable[Overview | Failure]],
        history: Callable[[str, str], Awaitable[Versions | Failure]],
        search: Callable[[Ask], Awaitable[HitList | Failure]],
    ) -> None:
        """The functions are the engine's (`services.query.gateway.service.EnginePort`)."""
        self._given = tuple(given)
        self._overview, self._history, self._search = overview, history, search
        self._lists: dict[tuple[int, str], tuple[float, list[StarterInfo]]] = {}
        self._looking = asyncio.Lock()

    async def best(self, n: int, namespace: str) -> list[StarterInfo]:
        """At most `n` questions. Raises ApiError when the bank can't be read."""
        async with self._looking:
            at, known = self._lists.get((n, namespace), (float("-inf"), []))
            if known and time.monotonic() - at < _FRESH_S:
                return known
            found = await self._look(n, namespace)
            if len(self._lists) >= _KEPT:
                self._lists.clear()
            self._lists[n, namespace] = (time.monotonic(), found)
            return found

    async def _look(self, n: int, namespace: str) -> list[StarterInfo]:
        found: list[StarterInfo] = []
        tries = 0
        async for question, doc_id in self._questions(namespace):
            if len(found) == n or tries == _MOST_TRIES:
                break
            tries += 1
            about = await self._article_of(question, namespace)
            if about is not None and doc_id in (None, about) and about not in {one.doc_id for one in found}:
                found.append(StarterInfo(question=question, doc_id=about))
        return found

    async def _questions(self, namespace: str) -> AsyncIterator[tuple[str, str | None]]:
        """Questions with the article that each was made of, None for those of the settings."""
        seen = await self._overview(_LATEST, namespace)
        if isinstance(seen, Failure):
            raise refusal(seen)
        if not seen.latest:
            return
        for question in self._given:
            yield question, None
        for article in seen.latest:
            told = await self._history(article.doc_id, namespace)
            if isinstance(told, Failure):
                raise refusal(told)
            live = next((version for version in told.versions if is_live(version)), None)
            if live is not None and (made := question_of(live.text)) is not None:
                yield made, article.doc_id

    async def _article_of(self, question: str, namespace: str) -> str | None:
        """The article that would be read first, None when nothing is relevant enough."""
        found = await self._search(Ask(question, lookups=lookups_of(question), top_k=1, namespace=namespace))
        if isinstance(found, Failure):
            raise refusal(found)
        relevant = [hit for hit, is_relevant in zip(found.hits, found.relevant, strict=True) if is_relevant]
        return relevant[0].doc_id if relevant else None
