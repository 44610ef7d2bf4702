"""Makes an entry of what RSS, Atom and JSON Feed say about an item, in whatever way they say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from services.feed.html_text import one_line
from services.feed.identity import Entry
from services.stream.record import Document

__all__ = ["make_entry", "text_of"]

_MAX_URL_CHARS = 8192  # as in document.v1.schema.json
_MAX_LANG_CHARS = 35


def make_entry(
    *,
    guid: object,
    link: object,
    title: str,
    texts: Iterable[str],
    published_at: datetime | None,
    updated_at: datetime | None,
    source: str,
    lang: object,
    base_url: str,
    metadata: Mapping[str, Any],
) -> Entry | None:
    """The first text that is not blank counts, the title when there is no other; None when there is nothing to read.

    `base_url` is what a relative link is joined to.
    """
    title = one_line(title)
    text = next((text for text in texts if text), title)
    if not text:
        return None
    link = one_line(text_of(link))
    facts = {name: one_line(text_of(fact)) for name, fact in metadata.items()}
    language = one_line(text_of(lang))
    document = Document(
        id="",
        text=text,
        title=title,
        url=_absolute(link, base_url),
        source=one_line(source),
        published_at=published_at or updated_at,
        lang=language if _is_language(language) else "",
        metadata={name: fact for name, fact in facts.items() if fact},
    )
    return Entry(one_line(text_of(guid)), link, document, updated_at or published_at)


def text_of(value: object) -> str:
    """A text, or a number as text; empty for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _absolute(link: str, base_url: str) -> str:
    """The http or https address of a link, empty when it is none."""
    try:
        address = urljoin(base_url, link) if link else ""
        usable = urlsplit(address).scheme in ("http", "https") and len(address) <= _MAX_URL_CHARS
    except ValueError:
        return ""
    return address if usable else ""


def _is_language(tag: str) -> bool:
    return len(tag) <= _MAX_LANG_CHARS and tag.isascii() and tag.replace("-", "").isalnum()
