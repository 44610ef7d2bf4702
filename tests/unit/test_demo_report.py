"""The demo's verdict, and polled feeds that send only what is new."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.demo import Asked, DemoReport
from services.feed.items import FeedQueue
from services.feed.run import _Changed
from services.stream.record import Document, Tombstone


def _report(total: int, before: int, after: int) -> DemoReport:
    return DemoReport([Asked("q", "a", "", "", "", i < before, i < after) for i in range(total)], {})


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [(0, 40, True), (0, 39, False), (14, 40, False), (13, 40, True), (100, 100, False), (0, 0, False)],
)
def test_verdict_needs_forty_percent_and_three_times_closed_book(before: int, after: int, passed: bool) -> None:
    assert _report(100, before, after).passed is passed


def _queue(*items: Document | Tombstone) -> FeedQueue:
    def opened() -> Iterator[Document | Tombstone]:
        return iter(items)

    return FeedQueue([opened])


def test_polling_sends_new_and_edited_items_only() -> None:
    known: dict[str, str] = {}
    first = Document(id="a", text="The bridge opens in May.")
    assert list(_Changed(_queue(first, Document(id="b", text="x")), known)) == [first, Document(id="b", text="x")]
    edited = Document(id="a", text="The bridge opens in June.")
    assert list(_Changed(_queue(edited, Document(id="b", text="x")), known)) == [edited]
    assert list(_Changed(_queue(Tombstone("a")), known)) == [Tombstone("a")]
    assert list(_Changed(_queue(edited), known)) == [edited]
