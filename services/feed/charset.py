"""Decodes a feed's bytes: by what the server and the file say, where that can be true."""

from __future__ import annotations

import codecs
import re
from email.message import Message

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

__all__ = ["decoded"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# `<?xm` or `<rss` without a mark; the first character of XML and JSON is ASCII
_WIDE = (
    (re.compile(rb"\x00\x00\x00[<{]"), "utf-32-be"),
    (re.compile(rb"[<{]\x00\x00\x00"), "utf-32-le"),
    (re.compile(rb"\x00[<{]\x00"), "utf-16-be"),
    (re.compile(rb"[<{]\x00[^\x00]\x00"), "utf-16-le"),
    (re.compile(rb"\x4c\x6f\xa7\x94"), "cp037"),
)
_XML_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]{1,40})["']""", re.IGNORECASE)
_ASCII = re.compile(r"[\x00-\x7f]+")
# What people write under these names holds more than the standards of those names.
_WIDER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
}
_NO_CHARSETS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"})


def decoded(data: bytes, content_type: str = "") -> str:
    """The text of a feed's bytes; never fails.

    In this order: a byte order mark; UTF-8 where the bytes are that, since no other text looks like it by chance, with a few
    broken characters (a summary that was cut); the `charset` of the server's Content-Type; the XML declaration; a guess.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    for pattern, name in _WIDE:
        if pattern.match(data):
            return data.decode(name, "replace")
    if not data.isascii() and (text := _mostly_utf8(data)) is not None:
        return text
    for name in (_of_header(content_type), _of_xml(data), detect_encoding(data) or ""):
        for codec in _codecs(name):
            if (text := _strictly(data, codec)) is not None:
                return text
    return data.decode("cp1252", "replace")


def _of_header(content_type: str) -> str:
    message = Message()
    message["Content-Type"] = " ".join(content_type.split())
    return message.get_content_charset("") or ""


def _of_xml(data: bytes) -> str:
    found = _XML_DECLARATION.match(data[:1000])
    return found[1].decode("ascii", "ignore") if found else ""


def _codecs(name: str) -> list[str]:
    """Python's codecs to try for a charset's name, the widest first; none for one that the bytes can't be in."""
    for spelling in (name, map_encoding_to_html5(name, False) or ""):
        try:
            codec = codecs.lookup(spelling).name if spelling else ""
        except (LookupError, ValueError):
            continue
        # the bytes were seen to be no UTF-16 or UTF-32, whatever is said
        if codec and codec not in _NO_CHARSETS and not codec.startswith(("utf-16", "utf-32")):
            return [_WIDER.get(codec, codec), codec]
    return []


def _strictly(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except (UnicodeError, LookupError, TypeError):  # some of Python's codecs are no charsets
        return None


def _mostly_utf8(data: bytes) -> str | None:
    """The text with its broken characters replaced, None when not four of five are whole."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    others = len(_ASCII.sub("", text)) - broken
    return text if others >= 4 * broken else None
