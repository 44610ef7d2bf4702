"""Reads JSON Feed 1.x as entries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.errors import FeedError
from services.feed.entry import make_entry, text_of
from services.feed.html_text import html_to_text, tidy
from services.feed.identity import Entry
from services.feed.times import read_time
from services.feed.xml_feed import because

__all__ = ["json_entries", "json_feed"]

# the specification's address, and what is written in its place
_VERSIONS = ("https://jsonfeed.org/version/1", "http://jsonfeed.org/version/1", "1.0", "1.1")


def json_feed(text: str, name: str) -> Mapping[str, Any]:
    """The parsed feed. Raises FeedError when the text is no JSON Feed of version 1."""
    try:
        feed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FeedError(f"{name}: neither XML nor JSON{because(error)}") from None
    version = feed.get("version") if isinstance(feed, dict) else None
    if not isinstance(version, str) or not version.startswith(_VERSIONS):
        raise FeedError(f"{name}: JSON, but no JSON Feed of version 1")
    if not isinstance(feed.get("items"), list):
        raise FeedError(f"{name}: a JSON Feed without a list of items")
    return feed  # type: ignore[no-any-return]


def json_entries(feed: Mapping[str, Any], url: str) -> Iterator[Entry | None]:
    """The entries of a feed, None for one without text; `url` is where it came from, empty when nobody knows."""
    for item in feed["items"]:
        if not isinstance(item, dict):
            yield None
            continue
        yield make_entry(
            guid=item.get("id"),
            link=item.get("url") or item.get("external_url"),
            title=text_of(item.get("title")),
            texts=_texts(item),
            published_at=read_time(text_of(item.get("date_published"))),
            updated_at=read_time(text_of(item.get("date_modified"))),
            source=text_of(feed.get("title")),
            lang=item.get("language") or feed.get("language"),
            base_url=url or text_of(feed.get("feed_url")),
            metadata={"author": _authors(item), "tags": _tags(item)},
        )


def _texts(item: Mapping[str, Any]) -> Iterator[str]:
    yield html_to_text(text_of(item.get("content_html")))
    yield tidy(text_of(item.get("content_text")))
    yield tidy(text_of(item.get("summary")))


def _authors(item: Mapping[str, Any]) -> str:
    authors = item.get("authors") if isinstance(item.get("authors"), list) else [item.get("author")]
    return ", ".join(text_of(author.get("name")) for author in authors or () if isinstance(author, dict))


def _tags(item: Mapping[str, Any]) -> str:
    tags = item.get("tags")
    return ", ".join(map(text_of, tags)) if isinstance(tags, list) else ""
