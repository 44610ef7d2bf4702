"""Plays feed items into Kafka at a chosen pace."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from services.errors import FeedError, RecordsRefused
from services.feed.items import InOrderOfTime, Item
from services.metrics import Metrics
from services.stream.record import Document, Tombstone

__all__ = ["PlayReport", "Producer", "play"]

log = logging.getLogger(__name__)

_FLUSH_TIMEOUT_S = 60.0
# The Kafka client queues without limit, so what waits for its acknowledgement is limited here.
_FLUSH_EVERY_ITEMS = 500


class Producer(Protocol):
    """What `play` needs of a DocumentProducer."""

    @property
    def acknowledged(self) -> int: ...

    def send(self, document: Document) -> None: ...

    def delete(self, id: str, namespace: str = ..., seq: int = ...) -> None: ...

    def flush(self, timeout_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class PlayReport:
    """Documents and deletions that Kafka has acknowledged; items left out because they hold no text, or are the same as
    another one of their feed; feeds or lines that could not be read; and items that the broker refused as too large."""

    sent: int
    deleted: int
    skipped: int
    unreadable: int = 0
    merged: int = 0
    refused: int = 0


def play(
    items: Iterator[Item],
    producer: Producer,
    rate_per_s: float | None = None,
    on_sent: Callable[[int], None] | None = None,
    metrics: Metrics | None = None,
    *,
    speed: float | None = None,
) -> PlayReport:
    """Sends all items, `rate_per_s` of them a second (None: as fast as Kafka takes them), and waits for the last.

    With `speed` they come in the order of `published_at` and with the pauses between, divided by it; all are read first.
    An item without a time comes with the one before it.

    A feed or line that can't be read is logged, counted and passed over. `on_sent` gets the number of items that Kafka
    has acknowledged so far, after each and at the end.

    Raises BrokerError when records were not delivered, ValueError for a rate that is not positive.
    """
    if rate_per_s is not None and not rate_per_s > 0:
        raise ValueError(f"the rate must be positive, not {rate_per_s}")
    if speed is not None and not speed > 0:
        raise ValueError(f"the speed must be positive, not {speed}")
    player = _Player(producer, rate_per_s, on_sent, metrics or Metrics(), speed)
    if speed is not None:
        items = InOrderOfTime(items)
    while player.take(items):
        pass
    return player.report(int(getattr(items, "skipped", 0)), int(getattr(items, "merged", 0)))


class _Player:
    def __init__(
        self,
        producer: Producer,
        rate_per_s: float | None,
        on_sent: Callable[[int], None] | None,
        metrics: Metrics,
        speed: float | None,
    ) -> None:
        self._speed = speed
        self._first_s: float | None = None
        self._started = time.monotonic()
        self._producer = producer
        self._interval_s = 1 / rate_per_s if rate_per_s else 0.0
        self._on_sent = on_sent
        self._metrics = metrics
        self._sent = self._deleted = self._unreadable = self._refused = 0
        self._queued: Counter[str] = Counter()
        self._before = producer.acknowledged
        self._due = time.monotonic()

    def take(self, items: Iterator[Item]) -> bool:
        """Sends the next item; False at the end."""
        try:
            item = next(items)
        except StopIteration:
            return False
        except FeedError as error:
            log.warning("%s", error)
            self._unreadable += 1
            self._metrics.count("cmt_feed_errors_total")
            return True
        self._wait()
        self._wait_for_its_time(item)
        self._send(item)
        return True

    def report(self, skipped: int, merged: int) -> PlayReport:
        """The counts, once everything has arrived."""
        self._flush()
        if skipped:
            self._metrics.count("cmt_feed_items_total", skipped, outcome="skipped")
        if merged:
            self._metrics.count("cmt_feed_items_total", merged, outcome="merged")
        return PlayReport(self._sent, self._deleted, skipped, self._unreadable, merged, self._refused)

    def _wait(self) -> None:
        """Until the next item is due; time lost to a slow feed or broker is not made up in a burst."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due, time.monotonic() - self._interval_s) + self._interval_s

    def _wait_for_its_time(self, item: Item) -> None:
        if self._speed is None or not isinstance(item, Document) or item.published_at is None:
            return
        time_s = item.published_at.timestamp()
        if self._first_s is None:
            self._first_s, self._started = time_s, time.monotonic()
        time.sleep(max(0.0, self._started + (time_s - self._first_s) / self._speed - time.monotonic()))

    def _send(self, item: Item) -> None:
        if isinstance(item, Tombstone):
            self._producer.delete(item.id, item.namespace, item.seq)
            self._queued["deleted"] += 1
        else:
            self._producer.send(item)
            self._queued["sent"] += 1
        if self._queued.total() >= _FLUSH_EVERY_ITEMS:
            self._flush()
        self._tell()

    def _flush(self) -> None:
        """Waits until all that is queued has arrived, and only then counts it; what the broker refuses costs no other item."""
        try:
            self._producer.flush(_FLUSH_TIMEOUT_S)
        except RecordsRefused as error:
            log.warning("%s", error)
            self._refused += error.count
            self._queued["sent"] -= error.count  # a deletion is never too large
            self._metrics.count("cmt_feed_items_total", error.count, outcome="refused")
        self._sent += self._queued["sent"]
        self._deleted += self._queued["deleted"]
        for outcome, count in self._queued.items():
            self._metrics.count("cmt_feed_items_total", count, outcome=outcome)
        self._queued.clear()
        self._tell()

    def _tell(self) -> None:
        if self._on_sent is not None:
            self._on_sent(self._producer.acknowledged - self._before)
