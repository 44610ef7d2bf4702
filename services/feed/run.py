"""What `cmt feed play` and `cmt feed poll` do: find the broker, make the topic, send."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.errors import RecordsRefused
from services.feed.download import without_secrets
from services.feed.fetch import read_all
from services.feed.play import PlayReport, play
from services.feed.poller import FeedLook, Poller
from services.feed.state import FeedState, one_poller
from services.interrupts import ENDS_WITHIN_S, interruptible
from services.metrics import Metrics
from services.settings import Settings
from services.stream.broker import running_broker
from services.stream.producer import DocumentProducer
from services.stream.topic_identity import topic_identity
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

    An item counts as sent when Kafka has acknowledged it, and for the topic that has it: another topic, or one that was
    made anew, gets all items. The number of feeds that could not be read at their last look. Raises BrokerError, and
    FeedError for a state file that is broken or used by another poller.
    """
    metrics = Metrics()
    failed: set[str] = set()
    with _producer(settings) as producer, one_poller(settings.feed.state_file), interruptible(ENDS_WITHIN_S) as wait:
        topic = topic_identity(settings.kafka, running_broker(settings.kafka))
        poller = Poller(urls, settings.feed, FeedState(settings.feed.state_file), metrics, topic)
        while True:
            for found in poller.due():
                (failed.add if found.error else failed.discard)(found.url)
                refused = _send(producer, found, metrics)
                poller.sent(found)  # what was refused is not sent again before it changes: it would be refused again
                console.print(_line(found), soft_wrap=True)
                if refused is not None:
                    console.print(str(refused), soft_wrap=True)
                if wait(0.0):
                    return len(failed)
            if once or poller.all_gone() or wait(poller.wait_s()):
                return len(failed)


def _send(producer: DocumentProducer, found: FeedLook, metrics: Metrics) -> RecordsRefused | None:
    """Sends what a look has found; what the broker refused of it, if anything."""
    refused: RecordsRefused | None = None
    for document in found.documents:
        producer.send(document)
    try:
        if found.documents:
            producer.flush(_FLUSH_S)
    except RecordsRefused as error:
        refused = error
        metrics.count("cmt_feed_items_total", error.count, outcome="refused")
    metrics.count("cmt_feed_items_total", len(found.documents) - (refused.count if refused else 0), outcome="sent")
    metrics.count("cmt_feed_items_total", found.skipped, outcome="skipped")
    metrics.count("cmt_feed_items_total", found.merged, outcome="merged")
    return refused


def _line(found: FeedLook) -> str:
    if found.error:
        return found.error
    skipped = f", {found.skipped} without text" if found.skipped else ""
    merged = f", {found.merged} the same as another" if found.merged else ""
    return f"{without_secrets(found.url)}: {len(found.documents)} new or changed{skipped}{merged}"


def _producer(settings: Settings) -> DocumentProducer:
    """A producer for the topic, which is made when it is missing, of a broker that runs already."""
    return DocumentProducer(settings.kafka, running_broker(settings.kafka))
