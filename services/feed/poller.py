"""Looks at feeds when they are due, and gives their new and changed items."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from services.errors import FeedError
from services.feed.deadline import within
from services.feed.download import Download, FeedGone, Validators, download, without_secrets
from services.feed.identity import digest
from services.feed.parse import read_feed
from services.feed.recognition import FeedChanges, recognised
from services.feed.state import FeedMemory, FeedState
from services.metrics import Metrics
from services.settings import FeedSettings
from services.stream.record import Document

__all__ = ["FeedLook", "Poller"]

_log = logging.getLogger(__name__)
_AT_ONCE = 8
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class FeedLook:
    """A look at one feed: documents that are new or changed, how many of its items were left out because they hold no text
    or are the same as another one, or why it could not be read. The rest is what `Poller.sent` notes."""

    url: str
    documents: Sequence[Document] = ()
    skipped: int = 0
    merged: int = 0
    error: str = ""
    items: FeedChanges = field(default_factory=FeedChanges)
    shared: set[str] = field(default_factory=set)
    validators: Validators | None = None


class Poller:
    """`due()` looks at all feeds that are due; `sent(look)` notes what Kafka has; `wait_s()` says when the next is due.

    A feed is due every `interval_s`, give or take a tenth, so that many feeds do not come at once; after failures twice
    as late each time, up to `longest_backoff_s`, or when its server says. One that is gone (410) is not looked at again.
    `topic` is the identity of the topic that the documents go to: what is noted as sent was sent to that one.
    """

    def __init__(
        self,
        urls: Sequence[str],
        settings: FeedSettings,
        state: FeedState,
        metrics: Metrics,
        topic: str,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._urls = list(dict.fromkeys(urls))
        self._settings, self._state, self._metrics = settings, state, metrics
        self._clock, self._chance = clock, chance
        for url in self._urls:
            state.feed(url).turn_to(topic)

    def due(self) -> Iterator[FeedLook]:
        """Looks at the due feeds, several at once, and gives what each had as it comes."""
        now = self._clock()
        due = [url for url in self._urls if not self._state.feed(url).gone and self._state.feed(url).due_s <= now]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="feed-poll") as pool:
            looks: list[tuple[str, Future[FeedLook]]] = [(url, pool.submit(self._look, url)) for url in due]
            try:
                for url, look in looks:
                    yield self._told(url, look)
            finally:
                self._state.save()

    def sent(self, look: FeedLook) -> None:
        """Notes the documents of a look as sent, and when the next is due. What was found and not noted is found again."""
        if look.error:
            return
        memory = self._state.feed(look.url)
        memory.failures = 0
        memory.due_s = self._clock() + self._spread(self._settings.interval_s)
        if look.validators is None:  # the server says that nothing has changed
            return
        memory.validators = look.validators
        memory.note(look.items.noted, look.items.current, look.shared)
        if look.documents:
            self._state.save()

    def wait_s(self) -> float:
        """Seconds until the next feed is due."""
        feeds = [self._state.feed(url) for url in self._urls]
        dues = [feed.due_s for feed in feeds if not feed.gone]
        return max(0.0, min(dues, default=self._clock() + self._settings.interval_s) - self._clock())

    def all_gone(self) -> bool:
        """Whether no feed is left to look at."""
        return all(self._state.feed(url).gone for url in self._urls)

    def _look(self, url: str) -> FeedLook:
        memory = self._state.feed(url)
        got = download(url, self._settings, memory.validators)
        if got.body is None:
            return FeedLook(url)
        try:
            return within(self._settings.timeout_s, lambda: _read(url, got, memory))
        except TimeoutError:
            limit = f"{self._settings.timeout_s:g} s"
            raise FeedError(f"{without_secrets(url)}: can't be parsed within {limit}") from None

    def _told(self, url: str, pending: Future[FeedLook]) -> FeedLook:
        try:
            look = pending.result()
        except FeedError as error:
            return self._failed(url, self._state.feed(url), error)
        except Exception as error:  # noqa: BLE001 - one feed, whatever it holds, must not end the look at the others
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            _log.debug("an odd feed", exc_info=True)
            odd = FeedError(f"{without_secrets(url)}: can't be read: {reason}")
            return self._failed(url, self._state.feed(url), odd)
        self._metrics.count("cmt_feed_items_total", look.items.unchanged, outcome="unchanged")
        return look

    def _failed(self, url: str, memory: FeedMemory, error: FeedError) -> FeedLook:
        memory.gone = isinstance(error, FeedGone)
        memory.failures += 1
        memory.validators = Validators()  # they may be what the server stumbles over
        longer_s = self._settings.interval_s * 2 ** min(memory.failures, 16)
        wait_s = self._spread(min(longer_s, self._settings.longest_backoff_s))
        memory.due_s = self._clock() + max(wait_s, error.retry_after_s or 0.0)
        self._metrics.count("cmt_feed_errors_total")
        return FeedLook(url, error=str(error))

    def _spread(self, seconds: float) -> float:
        return seconds * (1 + _JITTER * (2 * self._chance() - 1))


def _read(url: str, got: Download, memory: FeedMemory) -> FeedLook:
    shared = set(memory.shared)
    shown = without_secrets(url)
    feed = read_feed(got.body or b"", shown, url=got.url, content_type=got.content_type, shared=shared)
    items = recognised(feed.entries, memory.items, digest(shown)[:12])
    return FeedLook(url, items.documents, feed.skipped, feed.merged, "", items, shared, got.validators)
