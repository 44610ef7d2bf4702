"""Reads RSS, Atom, RDF and JSON feeds as documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.errors import FeedError
from services.feed.charset import decoded
from services.feed.identity import Entry, told_apart
from services.feed.items import FeedItems
from services.feed.json_feed import json_entries, json_feed
from services.feed.web_page import not_a_feed
from services.feed.xml_feed import because, xml_entries, xml_feed

__all__ = ["Feed", "parse_feed", "read_feed"]

_BLANK = "\ufeff \t\r\n\0"


@dataclass(frozen=True, slots=True)
class Feed:
    """The entries of a feed, and how many items were left out because they hold no text, or are the same as another."""

    entries: Sequence[Entry]
    skipped: int
    merged: int


def parse_feed(data: bytes, name: str, *, url: str = "", content_type: str = "") -> FeedItems:
    """The documents of one feed, as `read_feed` has them. Raises FeedError, at once, when the bytes are no feed."""
    feed = read_feed(data, name, url=url, content_type=content_type)
    return FeedItems((entry.document for entry in feed.entries), skipped=feed.skipped, merged=feed.merged)


def read_feed(data: bytes, name: str, *, url: str = "", content_type: str = "", shared: set[str] | None = None) -> Feed:
    """Reads RSS 0.9x to 2.0, Atom, RDF or JSON Feed 1.x; broken XML is read as far as it goes.

    `url` is the address that the feed came from in the end, which relative links are joined to, and `content_type` the
    server's; `shared` what earlier looks at the feed have learnt (`told_apart`), to which this one adds. An item's text is
    the full content, else the summary, else the title. `name` stands in the error.

    Raises FeedError when the bytes are no feed.
    """
    text = decoded(data, content_type).lstrip(_BLANK)
    entries = list(_json(text, name, url) if text[:1] in ("{", "[") else _xml(data, text, name, url))
    found = [entry for entry in entries if entry is not None]
    kept = told_apart(found, set() if shared is None else shared)
    return Feed(kept, skipped=len(entries) - len(found), merged=len(found) - len(kept))


def _json(text: str, name: str, url: str) -> Iterator[Entry | None]:
    return json_entries(json_feed(text, name), url)


def _xml(data: bytes, text: str, name: str, url: str) -> Iterator[Entry | None]:
    parsed = xml_feed(text, name)
    if parsed.get("version") or parsed.entries:
        return xml_entries(parsed, url)
    instead = not_a_feed(data, text, url)
    reason = because(parsed.get("bozo_exception"))
    raise FeedError(f"{name}: {instead}" if instead else f"{name}: neither RSS, Atom nor JSON Feed{reason}")
