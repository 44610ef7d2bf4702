"""How the rows of any bank are ordered for a question: the one ranking of the service, the library and the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmt_core.retrieval.late_interaction import closeness
from cmt_core.retrieval.proximity import RERANKED, proximity

__all__ = ["CANDIDATES", "DENSE", "HYBRID", "Name", "Ranking", "RankingMode"]

CANDIDATES = 64
"""Rows a question that are ranked: so many of the nearest by key, and as many of the best by words."""
TOKEN_WEIGHT = 5.0
_SPREAD = 0.09  # by which each unit of it spreads the ranks, so that one temperature of ψ's prior suits any weight
Name = tuple[str, int]
"""A row's document and which of its windows it is; rows of one score are in this order."""
RankingMode = Literal["dense", "hybrid", "rrf"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """`dense` orders by the cosine of the keys, `hybrid` by cosine + `word_weight` * BM25 / the question's best BM25, and the
    first of that order again with `proximity_weight` * proximity (proximity.py) and `token_weight` * closeness
    (late_interaction.py) added.

    `rrf` fuses the two orders by reciprocal rank (Cormack et al. 2009) instead. Decisions 0060, 0064 and 0170 have the
    measurements.
    """

    mode: RankingMode = "hybrid"
    word_weight: float = 0.4
    proximity_weight: float = 1.0
    token_weight: float = TOKEN_WEIGHT

    @property
    def reads_texts(self) -> bool:
        """Whether the texts of the best rows are needed."""
        return self._reads_first and self.proximity_weight > 0

    @property
    def reads_tokens(self) -> bool:
        """Whether the token vectors of the best rows are needed."""
        return self._reads_first and self.token_weight > 0

    @property
    def _reads_first(self) -> bool:
        return self.mode == "hybrid" and self.reads_words

    @property
    def reads_words(self) -> bool:
        """Whether the question's text is needed."""
        return self.mode == "rrf" or (self.mode == "hybrid" and self.word_weight > 0)

    def combined(self, cosines: dict[int, float], words: dict[int, float]) -> dict[int, float]:
        """The ranking score of every row of `cosines` {row id: cosine}; `words` {row id: BM25} may lack rows."""
        if self.mode == "rrf":
            meaning, lexical = _reciprocal(cosines), _reciprocal(words)
            return {row: meaning[row] + lexical.get(row, 0.0) for row in cosines}
        best = max(words.values(), default=0.0)
        if self.mode == "dense" or best <= 0:
            return dict(cosines)
        share = self.word_weight / best
        return {row: cosine + share * words.get(row, 0.0) for row, cosine in cosines.items()}

    def order(self, ranks: Mapping[int, float], names: Mapping[int, Name]) -> list[int]:
        """The rows, best first."""
        return sorted(ranks, key=lambda row: (-ranks[row], *names[row]))

    def looked_at(
        self,
        question: str,
        question_tokens: NDArray[np.float32],
        ranks: Mapping[int, float],
        texts: Mapping[int, str],
        tokens: Mapping[int, bytes],
    ) -> dict[int, float]:
        """The ranks, with what a look at the texts and the packed tokens of the first rows adds.

        `texts` should be those of the first `RERANKED` rows of the order: rarity of words counts among them. `tokens` may lack
        rows, those of older banks: they get the mean of the others.
        """
        added, spread = dict.fromkeys(texts, 0.0), 1.0
        if self.reads_texts:
            for row, one in zip(texts, proximity(question, list(texts.values())), strict=True):
                added[row] += self.proximity_weight * one
        known = {row: packed for row in texts if (packed := tokens.get(row))}
        if self.reads_tokens and known and len(question_tokens):
            close = dict(zip(known, closeness(question_tokens, list(known.values())), strict=True))
            usual = sum(close.values()) / len(close)
            for row in added:
                added[row] += self.token_weight * close.get(row, usual)
            spread = 1 + _SPREAD * self.token_weight
        return {row: (rank + added.get(row, 0.0)) / spread for row, rank in ranks.items()}

    @staticmethod
    def first(order: Sequence[int]) -> Sequence[int]:
        """The rows of an order whose texts `looked_at` wants."""
        return order[:RERANKED]

    @staticmethod
    def one_a_document(order: Sequence[int], names: Mapping[int, Name]) -> list[int]:
        """The first row of each document, in their order."""
        first: dict[str, int] = {}
        for row in order:
            first.setdefault(names[row][0], row)
        return list(first.values())


DENSE = Ranking("dense")
HYBRID = Ranking()


def _reciprocal(scores: dict[int, float]) -> dict[int, float]:
    order = sorted(scores, key=lambda row: (-scores[row], row))
    return {row: 1.0 / (60 + place) for place, row in enumerate(order, 1)}
