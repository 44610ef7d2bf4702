"""Finding by meaning and by words together: cosine of the retrieval keys, a share of BM25, and proximity among the best.

A small sentence encoder misses names and numbers that stand word for word in a text; BM25 (Robertson and Zaragoza 2009) finds
them. BM25 is divided by the question's best score, so that the two are of one size. Whether the words stand together is looked
at in the best `RERANKED` texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from numpy.typing import NDArray

from cmt_core.proximity import RERANKED, proximity
from cmt_core.words import words

__all__ = ["Found", "HybridIndex"]

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
_STOP_WORDS = frozenset(STOPWORDS_EN)
LEXICAL_WEIGHT = 0.4  # chosen on squad_dev's whole bank: recall@1 61 dense, 77 BM25, 80 both; flat from 0.3 to 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """A row that was found, with its score."""

    row: int
    score: float


class HybridIndex:
    """Exact search over N texts with keys (N, d); small enough for memory, as in evaluation."""

    def __init__(
        self, texts: Sequence[str], keys: NDArray[np.floating], lexical_weight: float = LEXICAL_WEIGHT
    ) -> None:
        self._texts, self._keys, self._asked_weight = texts, keys.astype(np.float32), lexical_weight
        self._stemmer = Stemmer.Stemmer("english")
        self._bm25 = bm25s.BM25(k1=1.2, b=0.75)
        indexed = self._words(texts) if lexical_weight else []
        self._weight = lexical_weight if any(indexed) else 0.0
        if self._weight:
            self._bm25.index(indexed, show_progress=False)

    def part(self, rows: Sequence[int]) -> HybridIndex:
        """The index of these rows only; BM25's statistics are theirs, too."""
        return HybridIndex([self._texts[row] for row in rows], self._keys[list(rows)], self._asked_weight)

    def scores(self, questions: Sequence[str], keys: NDArray[np.float16]) -> NDArray[np.float32]:
        """Scores (B, N) of all texts for questions with keys (B, d), without proximity."""
        cosine: NDArray[np.float32] = keys.astype(np.float32) @ self._keys.T
        if not self._weight:
            return cosine
        bm25 = np.stack([self._words_score(asked) for asked in self._words(questions)])
        best = np.maximum(bm25.max(axis=1, keepdims=True), 1e-6)
        both: NDArray[np.float32] = cosine + np.float32(self._weight) * (bm25 / best).astype(np.float32)
        return both

    def nearest(self, questions: Sequence[str], keys: NDArray[np.float16], k: int) -> list[list[Found]]:
        """The k best rows of every question, best first."""
        scores = self.scores(questions, keys)
        if self._weight:
            for question, own in zip(questions, scores, strict=True):
                best = np.argsort(-own, kind="stable")[:RERANKED]
                own[best] += np.asarray(proximity(question, [self._texts[row] for row in best]), dtype=np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [[Found(int(row), float(own[row])) for row in rows] for own, rows in zip(scores, order, strict=True)]

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        return [self._stems(text) for text in texts]

    def _stems(self, text: str) -> list[str]:
        """Stems without stop words and single letters, as bm25s takes them; single characters of other scripts are words."""
        lower = map(str.lower, words(text))
        kept = [word for word in lower if word not in _STOP_WORDS and (len(word) > 1 or not word.isascii())]
        stems: list[str] = self._stemmer.stemWords(kept)
        return stems

    def _words_score(self, asked: list[str]) -> NDArray[np.float32]:
        if not asked:  # a question of stop words
            return np.zeros(len(self._keys), dtype=np.float32)
        scores: NDArray[np.float32] = self._bm25.get_scores(asked)
        return scores
