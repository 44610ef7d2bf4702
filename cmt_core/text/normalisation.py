"""One form for every text before it becomes tokens, keys or words: what looks the same is the same.

Texts come from feeds, PDFs and web pages, with decomposed accents, ligatures, soft hyphens, zero-width and bidirectional marks,
byte order marks and non-breaking spaces. A reader sees none of it; a tokenizer takes a word apart at each. ASCII stays as it is.

NFC rather than NFKC, which also writes 10⁶ as 106 and ½ as 1⁄2: of the compatibility forms only other shapes of the same letters
and digits are replaced (ﬁ, Ｆ, 𝐅, the Arabic presentation forms, halfwidth katakana).
"""

from __future__ import annotations

import functools
import re
import unicodedata

__all__ = ["normalised", "on_one_line"]

_CODES = range(
    0x80, 0x1F000
)  # compatibility forms of letters, spaces and marks lie here; Hangul's jamo are no such forms
_OTHER_SHAPES = {"<wide>", "<narrow>", "<font>", "<initial>", "<medial>", "<final>", "<isolated>"}
_LIGATURES = range(0xFB00, 0xFB50)
_LINE_ENDS = "\x85\u2028\u2029"
_HYPHENS = "\u2010\u2011"  # they differ from ASCII's in where a line may break
_VISIBLE_FORMAT = {
    *range(0x600, 0x606),
    0x6DD,
    0x70F,
    0x890,
    0x891,
    0x8E2,
    0x110BD,
    0x110CD,
}  # signs over Arabic numbers
_INVISIBLE_LETTERS = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0}
_SELECTORS = {
    *range(0x180B, 0x1810),
    *range(0xFE00, 0xFE10),
    *range(0xE0000, 0xE1000),
}  # variants, and the plane of tags
_NO_CHARACTERS = {*range(0xFDD0, 0xFDF0), *range(0xFFF0, 0xFFF9), 0xFFFE, 0xFFFF}
_JOINERS = re.compile("[\u200c\u200d]+")
_JOINING = (range(0x590, 0x10A0), range(0x1780, 0x18B0))  # scripts in which a joiner changes the word


def normalised(text: str) -> str:
    """A text in NFC, without invisible and control characters, with plain spaces and plain shapes of letters and digits.

    Doing it twice changes nothing. White space is not collapsed.
    """
    forms = _forms()
    for char in forms.keys() & set(text):
        text = text.replace(char, forms[char])
    return text if text.isascii() else unicodedata.normalize("NFC", _JOINERS.sub(_kept_joiner, text))


def on_one_line(text: str) -> str:
    """A text normalised, with single spaces for its white space and none around it."""
    return " ".join(normalised(text).split())


def _kept_joiner(found: re.Match[str]) -> str:
    """A joiner stays where it is spelling, as in Persian and Hindi, or holds an emoji together."""
    neighbours = found.string[: found.start()][-1:] + found.string[found.end() : found.end() + 1]
    return found[0][0] if len(neighbours) == 2 and all(map(_joins, neighbours)) else ""


def _joins(char: str) -> bool:
    return any(ord(char) in script for script in _JOINING) or unicodedata.category(char) in ("So", "Sk")


@functools.cache
def _forms() -> dict[str, str]:
    """{character: what stands for it}; what stands for one holds no other."""
    forms = {chr(code): form for code in _CODES if (form := _form(chr(code))) is not None}
    forms |= {chr(code): "" for code in _SELECTORS}
    forms |= {chr(code): " " for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n\r"}
    return forms | dict.fromkeys(_LINE_ENDS, "\n")


def _form(char: str) -> str | None:
    code, category = ord(char), unicodedata.category(char)
    if code in _INVISIBLE_LETTERS or code in _NO_CHARACTERS:
        return ""
    if category == "Cf" and not _JOINERS.match(char) and code not in _VISIBLE_FORMAT:
        return ""
    if category == "Zs":
        return " "
    if char in _HYPHENS:
        return "-"
    return _plain_shape(char) if category[0] in "LN" else None


def _plain_shape(char: str) -> str | None:
    """The letters or digits of which a character is another shape; None: it is not."""
    kind = unicodedata.decomposition(char).partition(" ")[0]
    ligature = kind == "<compat>" and (ord(char) in _LIGATURES or unicodedata.name(char).startswith("LATIN "))
    plain = unicodedata.normalize("NFKC", char)
    return plain if (ligature or kind in _OTHER_SHAPES) and not plain.startswith(" ") else None
