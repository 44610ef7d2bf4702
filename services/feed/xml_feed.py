"""Reads RSS 0.9x to 2.0, Atom and RDF as entries, by feedparser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import feedparser

from services.errors import FeedError
from services.feed.entry import make_entry, text_of
from services.feed.identity import Entry
from services.feed.markup import declared_text, undeclared_text
from services.feed.times import read_time

__all__ = ["because", "xml_entries", "xml_feed"]

_HEADERS = {"content-type": "application/xml; charset=utf-8"}
_DECLARES_TYPES = ("atom10", "atom")
_TIMES = ("published", "updated", "created")


def xml_feed(text: str, name: str) -> Any:
    """What feedparser makes of a text; broken XML is read as far as it goes. Raises FeedError for what is broken before
    its first item; what is no feed has neither `version` nor `entries`."""
    # As a stream: bytes that happen to be a file's name would be opened as that file. Nothing is sanitised, since that
    # would take `List<Widget>` for a tag before we see it, and links are resolved by us.
    stream = io.BytesIO(text.encode())
    try:
        parsed = feedparser.parse(stream, response_headers=_HEADERS, sanitize_html=False, resolve_relative_uris=False)
    except Exception as error:  # noqa: BLE001 - feedparser lets errors of every kind through when bytes are odd enough
        raise FeedError(f"{name}: can't be read as a feed ({type(error).__name__})") from None
    broken = parsed.get("bozo_exception") if parsed.get("bozo") else None
    if parsed.get("version") and broken is not None and not parsed.entries:
        raise FeedError(f"{name}: broken before its first item{because(broken)}")
    return parsed


def xml_entries(parsed: Any, url: str) -> Iterator[Entry | None]:
    """The entries of a parsed feed, None for one without text; `url` is where it came from, empty when nobody knows."""
    feed = parsed.feed
    declares = parsed.get("version") in _DECLARES_TYPES
    base_url = url or next((one.get("href", "") for one in feed.get("links") or () if one.get("rel") == "self"), "")
    for entry in parsed.entries:
        published, updated, created = (_time(entry, kind) for kind in _TIMES)
        yield make_entry(
            guid=entry.get("id"),
            link=_link(entry),
            title=_plain(entry.get("title_detail"), declares),
            texts=(_plain(one, declares) for one in (*(entry.get("content") or ()), entry.get("summary_detail"))),
            published_at=published,
            updated_at=updated or created,
            source=_plain(feed.get("title_detail"), declares),
            lang=entry.get("language") or feed.get("language"),
            base_url=base_url,
            metadata={
                "author": entry.get("author"),
                "tags": ", ".join(tag.get("term") or "" for tag in entry.get("tags") or ()),
            },
        )


def because(error: object) -> str:
    """The parser's reason in brackets, without its name for a stream ("<unknown>:8:15: ...")."""
    text = " ".join(str(error).split()).removeprefix("<unknown>:")[:120] if error else ""
    return f" ({text})" if text else ""


def _link(entry: Any) -> str:
    """The link of an entry; feedparser also takes a guid for one, unless it says isPermaLink="false"."""
    link = text_of(entry.get("link"))
    return "" if link == entry.get("id") and "://" not in link else link


def _plain(detail: Any, declares: bool) -> str:
    """Plain text of a feedparser construct {type, value}."""
    if not detail:
        return ""
    read = declared_text if declares else undeclared_text
    return read(text_of(detail.get("value")), text_of(detail.get("type")))


def _time(entry: Any, kind: str) -> datetime | None:
    """A time of an entry; feedparser's own reading, which ignores what it does not know, only for times in Greek,
    Hungarian and Korean."""
    if kind not in entry:
        return None
    text = text_of(entry[kind])
    if text.isascii():
        return read_time(text)
    parsed = entry.get(f"{kind}_parsed")
    try:
        return datetime(*parsed[:6]).replace(tzinfo=UTC) if parsed else None
    except (ValueError, TypeError, OverflowError):
        return None
