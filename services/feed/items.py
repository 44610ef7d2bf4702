"""Items of feeds as an iterator that survives a broken feed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeAlias

from services.errors import FeedError
from services.stream.record import Document, Tombstone

__all__ = ["FeedItems", "FeedQueue", "InOrderOfTime", "Item"]

Item: TypeAlias = Document | Tombstone


class FeedItems(Iterator[Item]):
    """Items of one feed; `skipped` counts those left out so far because they hold no text."""

    def __init__(self, items: Iterable[Item | None]) -> None:
        """None in `items` stands for an item without text."""
        self._items = iter(items)
        self.skipped = 0

    def __next__(self) -> Item:
        for item in self._items:
            if item is not None:
                return item
            self.skipped += 1
        raise StopIteration


class FeedQueue(Iterator[Item]):
    """Items of several feeds, one feed after the other, opened only when it is their turn.

    `next` raises FeedError for a feed or line that can't be read, and may be called again: it goes on behind it.
    A plain `for` therefore stops at the first broken feed, while `play` counts it and goes on.
    """

    def __init__(self, openers: Iterable[Callable[[], Iterator[Item]]]) -> None:
        self._openers = iter(openers)
        self._current: Iterator[Item] = iter(())
        self._skipped = 0

    @property
    def skipped(self) -> int:
        """Items left out so far because they hold no text."""
        return self._skipped + int(getattr(self._current, "skipped", 0))

    def __next__(self) -> Item:
        while True:
            try:
                return next(self._current)
            except StopIteration:
                self._skipped = self.skipped
                self._current = iter(())
            self._current = next(self._openers)()


class InOrderOfTime(Iterator[Item]):
    """All items of another iterator, sorted by `published_at`; its errors come first. One without a time stays with the
    item before it. The first `next` reads everything."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._errors: list[FeedError] = []
        self._sorted: Iterator[Item] | None = None

    @property
    def skipped(self) -> int:
        """Items left out because they hold no text."""
        return int(getattr(self._items, "skipped", 0))

    def __next__(self) -> Item:
        if self._sorted is None:
            self._sorted = self._read()
        if self._errors:
            raise self._errors.pop(0)
        return next(self._sorted)

    def _read(self) -> Iterator[Item]:
        timed: list[tuple[datetime, Item]] = []
        latest = datetime.min.replace(tzinfo=UTC)
        while True:
            try:
                item = next(self._items)
            except StopIteration:
                return iter([item for _, item in sorted(timed, key=lambda pair: pair[0])])
            except FeedError as error:
                self._errors.append(error)
                continue
            latest = (item.published_at if isinstance(item, Document) else None) or latest
            timed.append((latest, item))
