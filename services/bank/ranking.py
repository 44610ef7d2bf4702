"""How the rows of a bank are ordered for a question; plain values, importable without Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DENSE", "Ranking", "RankingMode"]

RankingMode = Literal["dense", "hybrid", "rrf"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """`dense` orders by the cosine of the keys, `hybrid` by cosine + `word_weight` * BM25 / the question's best BM25, and the
    first of that order again with `proximity_weight` * proximity (cmt_core/proximity.py) added.

    `rrf` fuses the two orders by reciprocal rank (Cormack et al. 2009) instead. Decisions 0060 and 0064 have the measurements.
    """

    mode: RankingMode = "dense"
    word_weight: float = 0.4
    proximity_weight: float = 1.0

    @property
    def reads_texts(self) -> bool:
        """Whether the texts of the best rows are needed."""
        return self.mode == "hybrid" and self.reads_words and self.proximity_weight > 0

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


DENSE = Ranking()


def _reciprocal(scores: dict[int, float]) -> dict[int, float]:
    order = sorted(scores, key=lambda row: (-scores[row], row))
    return {row: 1.0 / (60 + place) for place, row in enumerate(order, 1)}
