"""The words of a text as every index counts them, also of scripts that are written without spaces.

Where nothing says where a word ends (Chinese, Japanese, Thai, Khmer), and in Korean, whose particles stick to their words, each
character is a word and so is each pair of neighbours: any part of a compound is found, and what shares pairs ranks first.
Dictionaries cut 新しい橋 well but 新大桥 and ស្ពានថ្មី differently alone and in a sentence, which then do not meet.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from dataclasses import dataclass

from cmt_core.text.normalisation import normalised

__all__ = ["WITHOUT_SPACES", "words"]

WITHOUT_SPACES = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff\u1000-\u109f\uaa60-\uaa7f"  # Tibetan, Myanmar
    "\u1100-\u11ff\uac00-\ud7ff"  # Hangul
    "\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Khmer, Tai Le, New Tai Lue, Tai Tham
    "\u3005-\u3007\u3031-\u3035\u3041-\u30ff\u3105-\u312f\u31f0-\u31ff"  # Japanese kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff"  # Han, Yi
    "\U00020000-\U0003ffff"
)
"""Ranges of a character class: scripts whose every character counts as a word."""


_WORD = re.compile(r"[^\W_]+")
_JOINER = re.compile("[\u200c\u200d]")


def words(text: str) -> list[str]:
    """The words of a text in their order, normalised but as capital as they were; punctuation is none."""
    plain = normalised(text)
    if plain.isascii() or not (patterns := _patterns()).needed.search(plain):
        return _WORD.findall(plain)
    found: list[str] = []
    for match in patterns.word.finditer(_JOINER.sub("", plain)):
        run = match["run"]
        found += [match[0]] if run is None else _characters_and_pairs(patterns.character.findall(run))
    return found


@dataclass(frozen=True, slots=True)
class _Patterns:
    """What tells that a text needs more than letters and digits; a word or a run without spaces; one character of a run."""

    needed: re.Pattern[str]
    word: re.Pattern[str]
    character: re.Pattern[str]


@functools.cache
def _patterns() -> _Patterns:
    """Accents and vowel signs stay with the character before them."""
    mark = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    letter = f"[^\\W_{WITHOUT_SPACES}]"
    character = f"(?=\\w)[{WITHOUT_SPACES}][{mark}]*"
    return _Patterns(
        re.compile(f"[{WITHOUT_SPACES}{mark}\u200c\u200d]"),
        re.compile(f"(?P<run>(?:{character})+)|{letter}(?:{letter}|[{mark}])*"),
        re.compile(character),
    )


def _characters_and_pairs(characters: list[str]) -> list[str]:
    """Each character followed by its pair with the next one."""
    pairs = [one + other for one, other in itertools.pairwise(characters)]
    return [part for both in itertools.zip_longest(characters, pairs) for part in both if part]
