"""Turns HTML of any quality into plain text: one line per block or table row, no scripts, entities decoded."""

from __future__ import annotations

import re
from html import unescape

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

__all__ = ["html_to_text", "one_line", "readable", "tidy"]

# Control characters and lone surrogates: nothing to read, and the latter can't be written as UTF-8.
_UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\ufeff\ufffe\uffff\ud800-\udfff]")
# What such an element holds is not read. `<iframe/>`, as XML serialisers write it, opens one in HTML, and one that is never
# closed goes to the end: neither must take along all that follows.
_SWALLOWING = (
    *("iframe", "textarea", "title", "noscript", "noembed", "noframes", "xmp"),
    *("template", "object", "video", "audio", "select", "button"),
)
_CLOSED_IN_XML = re.compile(rf"<(script|style|{'|'.join(_SWALLOWING)})\b[^<>]*/>", re.IGNORECASE)
_NOT_READ = "img, area, input, iframe, object, embed, audio, video, svg, math"


def html_to_text(html: str) -> str:
    """The readable text of an HTML fragment or page; never fails, whatever the markup."""
    html = readable(html)
    if "<" not in html:
        return tidy(unescape(html))
    tree = HTMLTree.parse(_without_unclosed(_CLOSED_IN_XML.sub(" ", html)))
    for node in tree.document.query_selector_all(_NOT_READ) if tree.document else ():
        node.decompose()
    # `alt_texts` is what keeps captions; the pictures' own are gone by now
    return tidy(extract_plain_text(tree, list_bullets=False, alt_texts=True))


def _without_unclosed(html: str) -> str:
    lower = html.lower()
    unclosed = [name for name in _SWALLOWING if f"<{name}" in lower and f"</{name}" not in lower]
    return re.sub(rf"<({'|'.join(unclosed)})\b[^<>]*>", " ", html, flags=re.IGNORECASE) if unclosed else html


def readable(text: str) -> str:
    """The text without the characters that nobody can read."""
    return _UNREADABLE.sub("", text)


def tidy(text: str) -> str:
    """Plain text with white space collapsed within lines, and neither blank lines nor unreadable characters."""
    lines = (" ".join(line.split()) for line in readable(text).splitlines())
    return "\n".join(line for line in lines if line)


def one_line(text: str) -> str:
    """Plain text as a single line."""
    return " ".join(tidy(text).split())
