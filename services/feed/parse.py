"""Reads RSS, Atom, RDF and JSON feeds as documents."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import feedparser

from services.errors import FeedError
from services.feed.html_text import html_to_text, one_line, tidy
from services.feed.items import FeedItems
from services.stream.record import Document

__all__ = ["parse_feed"]

_MAX_ID_CHARS = 1024  # as in document.v1.schema.json
_MAX_URL_CHARS = 8192
# the specification's address, and what is written in its place
_JSON_FEED = ("https://jsonfeed.org/version/1", "http://jsonfeed.org/version/1", "1.0", "1.1")
_BLANK = b"\xef\xbb\xbf \t\r\n\0"


def parse_feed(data: bytes, name: str) -> FeedItems:
    """The documents of one feed: RSS 0.9x to 2.0, Atom, RDF or JSON Feed 1.x; broken XML is read as far as it goes.

    An item is known by its guid, else its link, else a hash of title and time. Its text is the full content, else the
    summary, else the title; items without any are left out and counted in `skipped`. `name` stands in the error.
    Raises FeedError, at once, when the bytes are no feed.
    """
    if data.lstrip(_BLANK)[:1] in (b"{", b"["):
        return FeedItems(_json_items(_json_feed(data, name)))
    parsed = _xml_feed(data, name)
    return FeedItems(_xml_items(parsed))


def _xml_feed(data: bytes, name: str) -> Any:
    try:
        # as a stream: bytes that happen to be a file's name would be opened as that file
        parsed = feedparser.parse(io.BytesIO(data), sanitize_html=True, resolve_relative_uris=True)
    except Exception as error:  # noqa: BLE001 - feedparser lets errors of every kind through when bytes are odd enough
        raise FeedError(f"{name}: can't be read as a feed ({type(error).__name__})") from None
    broken = parsed.get("bozo_exception") if parsed.get("bozo") else None
    if not parsed.get("version") and not parsed.entries:
        raise FeedError(f"{name}: neither RSS, Atom nor JSON Feed{_because(broken)}")
    if broken is not None and not parsed.entries and not isinstance(broken, feedparser.CharacterEncodingOverride):
        raise FeedError(f"{name}: broken before its first item{_because(broken)}")
    return parsed


def _xml_items(parsed: Any) -> Iterator[Document | None]:
    feed = parsed.feed
    for entry in parsed.entries:
        times = (entry.get(f"{kind}_parsed") for kind in ("published", "updated", "created"))
        yield _document(
            identity=entry.get("id"),
            link=entry.get("link"),
            title=_plain(entry.get("title_detail")),
            texts=[*map(_plain, entry.get("content") or ()), _plain(entry.get("summary_detail"))],
            published_at=next((time for time in map(_from_struct, times) if time), None),
            source=_plain(feed.get("title_detail")),
            lang=entry.get("language") or feed.get("language"),
            metadata={
                "author": entry.get("author"),
                "tags": ", ".join(tag.get("term") or "" for tag in entry.get("tags") or ()),
            },
        )


def _json_feed(data: bytes, name: str) -> Mapping[str, Any]:
    try:
        feed = json.loads(data.lstrip(_BLANK))
    except (ValueError, RecursionError) as error:
        raise FeedError(f"{name}: neither XML nor JSON{_because(error)}") from None
    version = feed.get("version") if isinstance(feed, dict) else None
    if not isinstance(version, str) or not version.startswith(_JSON_FEED):
        raise FeedError(f"{name}: JSON, but no JSON Feed of version 1")
    if not isinstance(feed.get("items"), list):
        raise FeedError(f"{name}: a JSON Feed without a list of items")
    return feed  # type: ignore[no-any-return]


def _json_items(feed: Mapping[str, Any]) -> Iterator[Document | None]:
    for item in feed["items"]:
        if not isinstance(item, dict):
            yield None
            continue
        authors = item.get("authors") if isinstance(item.get("authors"), list) else [item.get("author")]
        yield _document(
            identity=item.get("id"),
            link=item.get("url") or item.get("external_url"),
            title=_text(item.get("title")),
            texts=[html_to_text(_text(item.get("content_html"))), *map(tidy, map(_text, _plain_texts(item)))],
            published_at=_from_iso(item.get("date_published")) or _from_iso(item.get("date_modified")),
            source=_text(feed.get("title")),
            lang=item.get("language") or feed.get("language"),
            metadata={
                "author": ", ".join(_text(author.get("name")) for author in authors or () if isinstance(author, dict)),
                "tags": ", ".join(map(_text, tags)) if isinstance(tags := item.get("tags"), list) else "",
            },
        )


def _plain_texts(item: Mapping[str, Any]) -> tuple[Any, Any]:
    return item.get("content_text"), item.get("summary")


def _document(
    *,
    identity: object,
    link: object,
    title: str,
    texts: list[str],
    published_at: datetime | None,
    source: str,
    lang: object,
    metadata: Mapping[str, Any],
) -> Document | None:
    """The first text that is not blank counts, the title when there is no other; None when there is nothing to read."""
    title = one_line(title)
    text = next((text for text in texts if text), title)
    if not text:
        return None
    link = one_line(_text(link))
    facts = {name: one_line(_text(fact)) for name, fact in metadata.items()}
    language = one_line(_text(lang))
    return Document(
        id=_identity(one_line(_text(identity)) or link, f"{title}\n{published_at or text}"),
        text=text,
        title=title,
        url=link if len(link) <= _MAX_URL_CHARS and _scheme(link) in ("http", "https") else "",
        source=one_line(source),
        published_at=published_at,
        lang=language if _is_language(language) else "",
        metadata={name: fact for name, fact in facts.items() if fact},
    )


def _identity(given: str, otherwise: str) -> str:
    if given and len(given) <= _MAX_ID_CHARS:
        return given
    return hashlib.sha256((given or otherwise).encode()).hexdigest()[:32]


def _scheme(link: str) -> str:
    """The scheme of a link, empty for one that is no URL."""
    try:
        return urlsplit(link).scheme
    except ValueError:
        return ""


def _is_language(tag: str) -> bool:
    return len(tag) <= 35 and tag.isascii() and tag.replace("-", "").isalnum()


def _plain(detail: Any) -> str:
    """Plain text of a feedparser construct {type, value}."""
    if not detail:
        return ""
    value = _text(detail.get("value"))
    return tidy(value) if detail.get("type") == "text/plain" and "<" not in value else html_to_text(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _from_struct(time: Any) -> datetime | None:
    """feedparser's times are UTC already, and may be no times at all."""
    try:
        return datetime(*time[:6]).replace(tzinfo=UTC) if time else None
    except (ValueError, TypeError, OverflowError):
        return None


def _from_iso(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(text.strip()) if isinstance(text, str) else None
        if time is None:
            return None
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _because(error: object) -> str:
    """The parser's reason in brackets, without its name for a stream ("<unknown>:8:15: ...")."""
    text = " ".join(str(error).split()).removeprefix("<unknown>:")[:120] if error else ""
    return f" ({text})" if text else ""
