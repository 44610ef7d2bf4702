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
    """Items of one feed; of those left out, `skipped` hold no text, and `merged` are the same as another one."""

    def __init__(self, items: Iterable[Item], *, skipped: int = 0, merged: int = 0) -> None:
        self._items = iter(items)
        self.skipped, self.merged = skipped, merged

    def __next__(self) -> Item:
        return next(self._items)


class FeedQueue(Iterator[Item]):
    """Items of several feeds, one feed after the other, opened only when it is their turn.

    `next` raises FeedError for a feed or line that can't be read, and may be called again: it goes on behind it.
    A plain `for` therefore stops at the first broken feed, while `play` counts it and goes on.
    """

    def __init__(self, openers: Iterable[Callable[[], Iterator[Item]]]) -> None:
        self._openers = iter(openers)
        self._current: Iterator[Item] = iter(())
        self.skipped = self.merged = 0

    def __next__(self) -> Item:
        while True:
            try:
                return next(self._current)
            except StopIteration:
                self._current = iter(())
            opened = next(self._openers)()
            self.skipped += int(getattr(opened, "skipped", 0))
            self.merged += int(getattr(opened, "merged", 0))
            self._current = opened


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

    @property
    def merged(self) -> int:
        """Items left out because they are the same as another one."""
        return int(getattr(self._items, "merged", 0))

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
