"""What `cmt feed play` and `cmt feed poll` do: open the broker, make the topic, send."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.feed.fetch import read_all
from services.feed.items import FeedQueue, Item
from services.feed.play import PlayReport, play
from services.runtime import interruptible
from services.settings import Settings
from services.stream.broker import open_broker
from services.stream.producer import DocumentProducer
from services.stream.record import Document
from services.stream.topics import ensure_topics

__all__ = ["play_once", "poll_forever"]


def play_once(settings: Settings, sources: Sequence[str], rate_per_s: float | None, console: Console) -> PlayReport:
    """Sends all items of the sources, with a live count on `console`. Raises BrokerError."""
    with (
        open_broker(settings.kafka) as bootstrap,
        _producer(settings, bootstrap) as producer,
        Progress(SpinnerColumn(), TextColumn("{task.completed} sent"), TimeElapsedColumn(), console=console) as bar,
    ):
        task = bar.add_task("sending", total=None)
        items = read_all(sources, settings.feed)
        return play(items, producer, rate_per_s, on_sent=lambda sent: bar.update(task, completed=sent))


def poll_forever(settings: Settings, urls: Sequence[str], every_s: float, console: Console) -> None:
    """Fetches the feeds every `every_s` seconds until Ctrl-C; only items that are new or changed are sent."""
    known: dict[str, str] = {}
    with (
        open_broker(settings.kafka) as bootstrap,
        _producer(settings, bootstrap) as producer,
        interruptible() as wait,
    ):
        while True:
            report = play(_Changed(read_all(urls, settings.feed), known), producer)
            console.print(
                f"{len(urls)} feeds: {report.sent} new or changed documents sent, {report.unreadable} unreadable",
                highlight=False,
            )
            if wait(every_s):
                return


class _Changed(Iterator[Item]):
    """Items whose content differs from the last one of the same id; errors of the items behind pass through."""

    def __init__(self, items: FeedQueue, known: dict[str, str]) -> None:
        self._items = items
        self._known = known

    @property
    def skipped(self) -> int:
        return self._items.skipped

    def __next__(self) -> Item:
        while True:
            item = next(self._items)
            content = item.to_json() if isinstance(item, Document) else b"deleted"
            digest = hashlib.sha256(content).hexdigest()
            if self._known.get(item.id) != digest:
                self._known[item.id] = digest
                return item


def _producer(settings: Settings, bootstrap: str) -> DocumentProducer:
    """A producer for the topic, which is made when it is missing."""
    ensure_topics(settings.kafka, bootstrap)
    return DocumentProducer(settings.kafka, bootstrap)
