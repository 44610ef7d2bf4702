"""What `cmt feed play` and `cmt feed poll` do: find the broker, make the topic, send."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.feed.download import without_secrets
from services.feed.fetch import read_all
from services.feed.play import PlayReport, play
from services.feed.poller import Found, Poller
from services.feed.state import FeedState
from services.interrupts import ENDS_WITHIN_S, interruptible
from services.metrics import Metrics
from services.settings import Settings
from services.stream.broker import running_broker
from services.stream.producer import DocumentProducer
from services.terminal import Terminal

__all__ = ["play_once", "poll_forever"]

_FLUSH_S = 60.0


def play_once(
    settings: Settings,
    sources: Sequence[str],
    rate_per_s: float | None,
    console: Terminal,
    speed: float | None = None,
) -> PlayReport:
    """Sends all items of the sources, with a live count on `console`; `speed` plays them by their own times.

    Raises BrokerError.
    """
    with (
        _producer(settings) as producer,
        Progress(SpinnerColumn(), TextColumn("{task.completed} sent"), TimeElapsedColumn(), console=console) as bar,
    ):
        task = bar.add_task("sending", total=None)
        items = read_all(sources, settings.feed)
        return play(items, producer, rate_per_s, lambda sent: bar.update(task, completed=sent), speed=speed)


def poll_forever(settings: Settings, urls: Sequence[str], console: Terminal, *, once: bool = False) -> int:
    """Looks at the feeds when they are due until Ctrl-C, or `once` at all of them; sends items that are new or changed.

    An item counts as sent when Kafka has acknowledged it: one that is found twice is sent twice, and none is lost. The
    number of feeds that could not be read at their last look. Raises BrokerError, and FeedError for a broken state file.
    """
    metrics = Metrics()
    poller = Poller(urls, settings.feed, FeedState(settings.feed.state_file), metrics)
    failed: set[str] = set()
    with _producer(settings) as producer, interruptible(ENDS_WITHIN_S) as wait:
        while True:
            for found in poller.due():
                (failed.add if found.error else failed.discard)(found.url)
                _send(producer, found, metrics)
                poller.sent(found)
                console.print(_line(found), soft_wrap=True)
                if wait(0.0):
                    return len(failed)
            if once or poller.all_gone() or wait(poller.wait_s()):
                return len(failed)


def _send(producer: DocumentProducer, found: Found, metrics: Metrics) -> None:
    for document in found.documents:
        producer.send(document)
    if found.documents:
        producer.flush(_FLUSH_S)
    metrics.count("cmt_feed_items_total", len(found.documents), outcome="sent")
    metrics.count("cmt_feed_items_total", found.skipped, outcome="skipped")


def _line(found: Found) -> str:
    if found.error:
        return found.error
    more = f", {found.skipped} without text" if found.skipped else ""
    return f"{without_secrets(found.url)}: {len(found.documents)} new or changed{more}"


def _producer(settings: Settings) -> DocumentProducer:
    """A producer for the topic, which is made when it is missing, of a broker that runs already."""
    return DocumentProducer(settings.kafka, running_broker(settings.kafka))
