"""The stems of a text's words, and how rare each is among texts that are compared.

They are English ones; words of other languages stay nearly as they are written.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from cmt_core.text.windows import sentences
from cmt_core.text.words import words

__all__ = ["Pairs", "StemmedText", "neighbours", "rarity", "stemmed", "stems"]

_QUESTION_WORDS = "who whom whose what when where which how why do does did was were is are"
_STOP_WORDS = frozenset((*STOPWORDS_EN, *_QUESTION_WORDS.split()))
_STEMMED_TEXTS = 512  # about 30 kB each
Pairs = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class StemmedText:
    """A text's stems, those of each two sentences in a row, and its pairs of neighbours."""

    words: frozenset[str]
    spans: tuple[frozenset[str], ...]
    pairs: Pairs


def stems(text: str) -> list[str]:
    """The stems of a text's words in their order, stop words left out."""
    kept = [word for word in map(str.lower, words(text)) if word not in _STOP_WORDS]
    found: list[str] = _STEMMERS.english.stemWords(kept)
    return found


@functools.lru_cache(_STEMMED_TEXTS)
def stemmed(text: str) -> StemmedText:
    """A text's stems, kept for the next question about it."""
    parts = [stems(sentence) for sentence in sentences(text)]
    spans = (frozenset((*one, *following)) for one, following in zip(parts, [*parts[1:], []], strict=False))
    flat = [word for part in parts for word in part]
    return StemmedText(frozenset(flat), tuple(spans), neighbours(flat))


def neighbours(stems: Sequence[str]) -> Pairs:
    """The pairs of stems that stand side by side."""
    return frozenset(itertools.pairwise(stems))


def rarity(wanted: Set[str], texts: Sequence[StemmedText], among: int | None = None) -> dict[str, float]:
    """What each wanted stem weighs by how few of the texts have it: BM25's inverse document frequency.

    The texts count as the ones that have any of them among as many as `among`; None: among themselves.
    """
    total = max(len(texts), among or 0)
    holding = Counter(word for one in texts for word in wanted & one.words)
    return {word: math.log(1 + (total - holding[word] + 0.5) / (holding[word] + 0.5)) for word in wanted}


class _Stemmers(threading.local):
    """One stemmer a thread: they can't be shared."""

    def __init__(self) -> None:
        self.english = Stemmer.Stemmer("english")


_STEMMERS = _Stemmers()
