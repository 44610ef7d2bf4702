"""Says what a document that is no feed is; of a web page also which feeds it names."""

from __future__ import annotations

import re
from urllib.parse import urljoin

from resiliparse.parse.html import HTMLTree

from services.feed.html_text import one_line, readable

__all__ = ["not_a_feed"]

_PAGE = re.compile(r"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_LOOKED_AT_CHARS = 4096
_MAX_NAMED = 3
_FEED_TYPES = ("application/rss+xml", "application/atom+xml", "application/rdf+xml", "application/feed+json")
_MAGIC = (
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "an image"),
    (b"GIF8", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
)


def not_a_feed(data: bytes, text: str, url: str) -> str:
    """What the document is instead, as the rest of a sentence; empty when nobody knows. `url` is where it came from."""
    for magic, what in _MAGIC:
        if data.startswith(magic):
            return f"{what}, not a feed"
    if not _PAGE.search(text[:_LOOKED_AT_CHARS]):
        return ""
    feeds = _named_feeds(text, url)
    return f"a web page, not a feed; it names {' and '.join(feeds)}" if feeds else "a web page, not a feed"


def _named_feeds(page: str, url: str) -> list[str]:
    """The addresses of the feeds that a page names by <link rel=alternate>."""
    document = HTMLTree.parse(readable(page)).document
    if document is None:
        return []
    bases = document.query_selector_all("base[href]")
    found: list[str] = []
    for link in document.query_selector_all("link[href]"):
        kind = (link.getattr("type") or "").partition(";")[0].strip().lower()
        if "alternate" not in (link.getattr("rel") or "").lower().split() or kind not in _FEED_TYPES:
            continue
        try:
            base = urljoin(url, bases[0].getattr("href") or "") if bases else url
            found.append(one_line(urljoin(base, (link.getattr("href") or "").strip())))
        except ValueError:
            continue
    return list(dict.fromkeys(found))[:_MAX_NAMED]
