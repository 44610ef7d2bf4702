"""How close together a question's words stand in a text, which neither the text's key nor BM25 sees.

Words that are common among the texts compared count less. Source: term proximity in ranking (Tao and Zhai 2007), and passages
instead of whole documents (Callan 1994). Decision 0064 has the measurements.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from cmt_core.text.windows import sentences
from cmt_core.text.words import words

__all__ = ["RERANKED", "proximity"]

RERANKED = 16
"""Texts a question that are looked at, the best by key and BM25: they hold the right one for 98% of squad_dev's questions."""
_QUESTION_WORDS = "who whom whose what when where which how why do does did was were is are"
_STOP_WORDS = frozenset((*STOPWORDS_EN, *_QUESTION_WORDS.split()))
_PARSED_TEXTS = 512  # about 30 kB each
_Pairs = frozenset[tuple[str, str]]


def proximity(question: str, texts: Sequence[str]) -> list[float]:
    """How much of the question stands close together in each text, 0 to 1; English stems.

    Half of it is the share of the question's words that the best two sentences in a row hold, each word weighed by its rarity
    among the texts; half the share of its pairs of neighbouring words that are neighbours in the text. A question of stop words
    has 0 everywhere.
    """
    asked = _stems(question)
    wanted, pairs = frozenset(asked), _neighbours(asked)
    parsed = [_parsed(text) for text in texts]
    holding = Counter(word for one in parsed for word in wanted & one.words)
    rarity = {word: math.log(1 + (len(texts) - holding[word] + 0.5) / (holding[word] + 0.5)) for word in wanted}
    return [_share(wanted, pairs, rarity, one) for one in parsed]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A text's words, those of each two sentences in a row, and its pairs of neighbours."""

    words: frozenset[str]
    spans: tuple[frozenset[str], ...]
    pairs: _Pairs


def _share(wanted: frozenset[str], pairs: _Pairs, rarity: dict[str, float], text: _Parsed) -> float:
    if not wanted:
        return 0.0
    best = max((sum(rarity[word] for word in wanted & span) for span in text.spans), default=0.0)
    return 0.5 * best / sum(rarity.values()) + 0.5 * len(pairs & text.pairs) / max(1, len(pairs))


@functools.lru_cache(_PARSED_TEXTS)
def _parsed(text: str) -> _Parsed:
    parts = [_stems(sentence) for sentence in sentences(text)]
    spans = (frozenset((*one, *following)) for one, following in zip(parts, [*parts[1:], []], strict=False))
    flat = [word for part in parts for word in part]
    return _Parsed(frozenset(flat), tuple(spans), _neighbours(flat))


def _neighbours(words: Sequence[str]) -> _Pairs:
    return frozenset(itertools.pairwise(words))


class _Stemmers(threading.local):
    """One stemmer a thread: they can't be shared."""

    def __init__(self) -> None:
        self.english = Stemmer.Stemmer("english")


_STEMMERS = _Stemmers()


def _stems(text: str) -> list[str]:
    kept = [word for word in map(str.lower, words(text)) if word not in _STOP_WORDS]
    stems: list[str] = _STEMMERS.english.stemWords(kept)
    return stems
