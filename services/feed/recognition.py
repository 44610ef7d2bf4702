"""Knows the items of a feed again: which are new, which have changed, and which only look new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from services.feed.identity import MAX_ID_CHARS, Entry, digest
from services.feed.state import SentItem
from services.stream.record import Document

__all__ = ["FeedChanges", "recognised"]

_URI = ("http://", "https://", "tag:", "urn:", "doi:")


@dataclass(frozen=True, slots=True)
class FeedChanges:
    """Documents to send; what to note of all items, once they are sent; the ids that the feed has now; and how many items
    there is nothing to send of, because they were sent before."""

    documents: Sequence[Document] = ()
    noted: dict[str, SentItem] = field(default_factory=dict)
    current: set[str] = field(default_factory=set)
    unchanged: int = 0


def recognised(entries: Sequence[Entry], sent: Mapping[str, SentItem], scope: str) -> FeedChanges:
    """Compares a feed's entries with those that were sent; `scope` goes before ids that are the feed's own, such as `17`.

    An item is sent when its id is new or its content has changed: title, text, source, language or metadata. A change of
    time or address alone is no news: some feeds give every item the time of the request, or a link of the day. And an item
    with a new id is the old one when that has gone from the feed, the content is the same, and so is the time, or, for
    an item without a guid, the path of its link.
    """
    current = {entry.document.id for entry in entries}
    gone = _by_mark({one: item for one, item in sent.items() if one not in current})
    noted: dict[str, SentItem] = {}
    documents = []
    for entry in entries:
        document, mark = entry.document, _mark(entry, scope)
        known = sent.get(document.id) or gone.get(mark.dated) or gone.get(mark.placed)
        noted[document.id] = replace(mark, doc=known.doc) if known else mark
        if known is None or known.content != mark.content:
            documents.append(replace(document, id=noted[document.id].doc))
    return FeedChanges(documents, noted, current, len(entries) - len(documents))


def _by_mark(items: Mapping[str, SentItem]) -> dict[str, SentItem]:
    marks = {item.dated: item for item in items.values()} | {item.placed: item for item in items.values()}
    marks.pop("", None)
    return marks


def _mark(entry: Entry, scope: str) -> SentItem:
    document = entry.document
    content = digest(document.title, document.text, document.source, document.lang, sorted(document.metadata.items()))
    return SentItem(
        doc=_scoped(document.id, scope),
        content=content[:16],
        dated=digest(content, document.published_at)[:16],
        placed="" if entry.guid else digest(content, _path(document.url))[:16],
    )


def _path(url: str) -> str:
    """An address without what may change from day to day."""
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path.partition(';')[0]}"


def _scoped(feed_id: str, scope: str) -> str:
    """The document's id: another feed has an item `17`, too."""
    if feed_id.startswith(_URI):
        return feed_id
    scoped = f"{scope}:{feed_id}"
    return scoped if len(scoped) <= MAX_ID_CHARS else f"{scope}:{digest(feed_id)}"
