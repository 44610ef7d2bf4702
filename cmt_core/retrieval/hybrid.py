"""Exact search over texts in memory, in the order of any bank: candidates by key and by words, ranked together (ranking.py).

A small sentence encoder misses names and numbers that stand word for word in a text; BM25 (Robertson and Zaragoza 2009) finds
them.
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

from cmt_core.retrieval.ranking import CANDIDATES, HYBRID, Name, Ranking
from cmt_core.text.words import words

__all__ = ["HybridIndex", "RowHit"]

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
_STOP_WORDS = frozenset(STOPWORDS_EN)
_Scores = NDArray[np.float32]
_NO_TOKENS: _Scores = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class RowHit:
    """A row that was found: its ranking score, and the cosine of its key."""

    row: int
    score: float
    cosine: float = 0.0


class HybridIndex:
    """N texts with keys (N, d) and packed tokens; `names` say which document each is a part of (each is its own without them)."""

    def __init__(
        self,
        texts: Sequence[str],
        keys: NDArray[np.floating],
        ranking: Ranking = HYBRID,
        names: Sequence[Name] | None = None,
        tokens: Sequence[bytes] = (),
    ) -> None:
        self._texts, self._keys, self._ranking = texts, _unit(keys), ranking
        self._tokens = tokens or [b""] * len(texts)
        self._names = dict(enumerate(names or [("", row) for row in range(len(texts))]))
        self._own_documents = names is None
        self._stemmer = Stemmer.Stemmer("english")
        self._bm25 = bm25s.BM25(k1=1.2, b=0.75)
        indexed = [self._stems(text) for text in texts] if ranking.reads_words else []
        self._has_words = any(indexed)
        if self._has_words:
            self._bm25.index(indexed, show_progress=False)

    def part(self, rows: Sequence[int]) -> HybridIndex:
        """The index of these rows only; BM25's statistics are theirs, too."""
        names = None if self._own_documents else [self._names[row] for row in rows]
        texts, tokens = [self._texts[row] for row in rows], [self._tokens[row] for row in rows]
        return HybridIndex(texts, self._keys[list(rows)], self._ranking, names, tokens)

    def nearest(
        self,
        questions: Sequence[str],
        keys: NDArray[np.floating],
        k: int,
        *,
        tokens: Sequence[NDArray[np.float32]] = (),
        every_chunk: bool = False,
    ) -> list[list[RowHit]]:
        """The k best rows of every question with keys (B, d), best first; of a document the best one unless `every_chunk`.

        `tokens` are the questions' token vectors (Q, D); without them they don't count.
        """
        cosines: _Scores = _unit(keys) @ self._keys.T  # (B, N)
        return [
            self._best(question, asked, near, self._words_score(question), k, every_chunk or self._own_documents)
            for question, asked, near in zip(questions, tokens or [_NO_TOKENS] * len(questions), cosines, strict=True)
        ]

    def _best(
        self, question: str, asked: _Scores, near: _Scores, bm25: _Scores, k: int, every_chunk: bool
    ) -> list[RowHit]:
        """Candidates are widened until k documents are found or all rows were seen."""
        pool = max(k, CANDIDATES)
        while True:
            rows = {*_top(near, pool), *(row for row in _top(bm25, pool) if bm25[row] > 0)}
            ranks = self._ranking.combined(
                {row: float(near[row]) for row in rows}, {row: float(bm25[row]) for row in rows if bm25[row] > 0}
            )
            order = self._ranking.order(ranks, self._names)
            if self._has_words and (self._ranking.reads_texts or self._ranking.reads_tokens):
                firsts = {row: self._texts[row] for row in self._ranking.first(order)}
                ranks = self._ranking.looked_at(
                    question, asked, ranks, firsts, {row: self._tokens[row] for row in firsts}
                )
                order = self._ranking.order(ranks, self._names)
            chosen = order if every_chunk else self._ranking.one_a_document(order, self._names)
            if len(chosen) >= k or pool >= len(self._texts):
                return [RowHit(row, ranks[row], float(near[row])) for row in chosen[:k]]
            pool *= 4

    def _stems(self, text: str) -> list[str]:
        """Stems without stop words and single letters, as bm25s takes them; single characters of other scripts are words."""
        lower = map(str.lower, words(text))
        kept = [word for word in lower if word not in _STOP_WORDS and (len(word) > 1 or not word.isascii())]
        stems: list[str] = self._stemmer.stemWords(kept)
        return stems

    def _words_score(self, question: str) -> _Scores:
        """BM25 (N,) of all texts."""
        asked = self._stems(question) if self._has_words else []
        if not asked:  # a question of stop words
            return np.zeros(len(self._keys), dtype=np.float32)
        return np.asarray(self._bm25.get_scores(asked), dtype=np.float32)


def _unit(vectors: NDArray[np.floating]) -> _Scores:
    wide = vectors.astype(np.float32)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _top(scores: _Scores, size: int) -> list[int]:
    """The rows of the `size` highest scores, in no order."""
    if size >= len(scores):
        return list(range(len(scores)))
    rows: list[int] = np.argpartition(-scores, size)[:size].tolist()
    return rows
