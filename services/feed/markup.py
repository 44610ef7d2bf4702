"""Decides whether a text of a feed is HTML or plain, and reads it as that.

Atom declares it and is believed. RSS does not, nor does Atom before 1.0 in practice: there a text is HTML where it holds
markup that people write, which is a closing tag, a tag with attributes, or one that stands alone, of an element of HTML.
"""

from __future__ import annotations

import re
from html import unescape

from services.feed.html_text import html_to_text, tidy

__all__ = ["declared_text", "undeclared_text"]

_ELEMENTS = frozenset(
    """
    a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink blockquote body br button
    canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em embed fieldset
    figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe image img input ins
    kbd label layer legend li link listing main map mark marquee math menu meta meter nav nobr noembed noframes noscript object
    ol optgroup option output p param picture plaintext pre progress q rb rp rt rtc ruby s samp script search section select
    slot small source spacer span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead time
    title tr track tt u ul var video wbr xmp
    """.split()  # noqa: SIM905
)
_ALONE = frozenset({"br", "hr", "img", "wbr", "p", "li", "div", "table", "ul", "ol", "blockquote", "pre"})
_TAG = re.compile(r"<(?P<close>/?)(?P<name>[A-Za-z][^\s/<>]*)(?P<rest>[^<>]*)>")
_OPENING = re.compile(r"<(?=/?(?P<name>[A-Za-z][^\s/<>]*))")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_BINARY = re.compile(r"\s*[A-Za-z0-9+/\s]{16,}={0,2}\s*")  # Base64 that the parser could not turn into text
_XHTML = "application/xhtml+xml"


def declared_text(value: str, media_type: str) -> str:
    """The plain text of a value of a declared type; empty for what is no text, such as a PDF in Base64."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind in ("text/html", "html", "xhtml") or kind.endswith(("/xml", "+xml")):
        return html_to_text(value)
    if kind in ("", "text") or kind.startswith("text/"):
        return tidy(value)
    return "" if _BINARY.fullmatch(value) else undeclared_text(value, kind)


def undeclared_text(value: str, media_type: str) -> str:
    """The plain text of a value that may be HTML or not; `media_type` is the parser's guess."""
    if media_type == _XHTML:
        return html_to_text(value)
    if _is_escaped_markup(value):  # once too often
        value = unescape(value)
    if _is_markup(value):
        return html_to_text(_unknown_tags_as_text(value))
    return tidy(_ENTITY.sub(lambda entity: unescape(entity[0]), value))


def _is_markup(value: str) -> bool:
    for tag in _TAG.finditer(value):
        name, rest = tag["name"].lower(), tag["rest"]
        if ":" in name or (name in _ELEMENTS and (tag["close"] or name in _ALONE or "=" in rest or rest.endswith("/"))):
            return True
    return "<!--" in value


def _is_escaped_markup(value: str) -> bool:
    """Whether a value without any tag of its own is an escaped element from its beginning to its end."""
    if "<" in value or "&lt;" not in value:
        return False
    inner = unescape(value).strip()
    first = _TAG.match(inner)
    return bool(first and first["name"].lower() in _ELEMENTS and inner.endswith(">") and _closing_tag(inner))


def _closing_tag(value: str) -> bool:
    return any(tag["close"] and tag["name"].lower() in _ELEMENTS for tag in _TAG.finditer(value))


def _unknown_tags_as_text(value: str) -> str:
    """`List<Widget>` among real tags is text that was not escaped; `<o:p>` and `<my-element>` are tags."""

    def kept(tag: re.Match[str]) -> str:
        name = tag["name"].lower()
        return tag[0] if name in _ELEMENTS or ":" in name or "-" in name else "&lt;"

    return _OPENING.sub(kept, value)
