"""Looks at feeds when they are due, and gives their new and changed items."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from services.errors import FeedError
from services.feed.deadline import within
from services.feed.download import Download, FeedGone, download, without_secrets
from services.feed.parse import parse_feed
from services.feed.state import FeedMemory, FeedState
from services.metrics import Metrics
from services.settings import FeedSettings
from services.stream.record import Document

__all__ = ["Found", "Poller"]

_log = logging.getLogger(__name__)
_AT_ONCE = 8
_JITTER = 0.1
_URI = ("http://", "https://", "tag:", "urn:", "doi:")


@dataclass(frozen=True, slots=True)
class Found:
    """A look at one feed: documents that are new or changed, items without text, or why it could not be read."""

    url: str
    documents: Sequence[Document] = ()
    skipped: int = 0
    error: str = ""


class Poller:
    """`due()` looks at all feeds that are due; `sent(found)` notes what has safely left; `wait_s()` says when the next is.

    A feed is due every `interval_s`, give or take a tenth, so that many feeds do not come at once; after failures twice
    as late each time, up to `longest_backoff_s`, or when its server says. One that is gone (410) is not looked at again.
    """

    def __init__(
        self,
        urls: Sequence[str],
        settings: FeedSettings,
        state: FeedState,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._urls = list(dict.fromkeys(urls))
        self._settings, self._state, self._metrics = settings, state, metrics
        self._clock, self._chance = clock, chance

    def due(self) -> Iterator[Found]:
        """Looks at the due feeds, several at once, and gives what each had as it comes."""
        now = self._clock()
        due = [url for url in self._urls if not self._state.feed(url).gone and self._state.feed(url).due_s <= now]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="feed-poll") as pool:
            looks: list[tuple[str, Future[tuple[Download, Sequence[Document], int]]]] = [
                (url, pool.submit(self._look, url)) for url in due
            ]
            for url, look in looks:
                yield self._found(url, look)

    def sent(self, found: Found) -> None:
        """Notes the documents of a look as sent. What was found and not noted is found again."""
        memory = self._state.feed(found.url)
        for document in found.documents:
            memory.note(document.id, _digest(document))
        self._state.save()

    def wait_s(self) -> float:
        """Seconds until the next feed is due."""
        feeds = [self._state.feed(url) for url in self._urls]
        dues = [feed.due_s for feed in feeds if not feed.gone]
        return max(0.0, min(dues, default=self._clock() + self._settings.interval_s) - self._clock())

    def all_gone(self) -> bool:
        """Whether no feed is left to look at."""
        return all(self._state.feed(url).gone for url in self._urls)

    def _look(self, url: str) -> tuple[Download, Sequence[Document], int]:
        memory = self._state.feed(url)
        got = download(url, self._settings, memory.etag, memory.last_modified)
        if got.body is None:
            return got, [], 0
        body, shown = got.body, without_secrets(url)
        try:
            documents, skipped = within(self._settings.timeout_s, lambda: _parsed(body, url, shown))
        except TimeoutError:
            raise FeedError(f"{shown}: can't be parsed within {self._settings.timeout_s:g} s") from None
        return got, documents, skipped

    def _found(self, url: str, look: Future[tuple[Download, Sequence[Document], int]]) -> Found:
        memory = self._state.feed(url)
        try:
            got, documents, skipped = look.result()
        except FeedError as error:
            return self._failed(url, memory, error)
        except Exception as error:  # noqa: BLE001 - one feed, whatever it holds, must not end the look at the others
            shown = (
                f"{without_secrets(url)}: can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            )
            return self._failed(url, memory, FeedError(shown))
        self._schedule(memory, self._settings.interval_s)
        memory.failures = 0
        if got.body is not None:
            memory.etag, memory.last_modified = got.etag, got.last_modified
        new = [one for one in documents if memory.is_new(one.id, _digest(one))]
        self._metrics.count("cmt_feed_items_total", len(documents) - len(new), outcome="unchanged")
        return Found(url, new, skipped)

    def _failed(self, url: str, memory: FeedMemory, error: FeedError) -> Found:
        memory.gone = isinstance(error, FeedGone)
        memory.failures += 1
        longer_s = self._settings.interval_s * 2 ** min(memory.failures, 16)
        self._schedule(memory, max(min(longer_s, self._settings.longest_backoff_s), error.retry_after_s or 0.0))
        self._metrics.count("cmt_feed_errors_total")
        _log.warning("%s", error)
        return Found(url, error=str(error))

    def _schedule(self, memory: FeedMemory, seconds: float) -> None:
        memory.due_s = self._clock() + seconds * (1 + _JITTER * (2 * self._chance() - 1))


def _parsed(body: bytes, url: str, shown: str) -> tuple[list[Document], int]:
    items = parse_feed(body, shown)
    return [_scoped(item, url) for item in items if isinstance(item, Document)], items.skipped


def _scoped(document: Document, url: str) -> Document:
    """Ids such as `17` are the feed's own: another feed has them, too."""
    if document.id.startswith(_URI):
        return document
    scope = hashlib.sha256(without_secrets(url).encode()).hexdigest()[:12]
    return replace(document, id=f"{scope}:{document.id}"[:1024])


def _digest(document: Document) -> str:
    return hashlib.sha256(document.to_json()).hexdigest()[:32]
