"""How close together a question's words stand in a text, which neither the text's key nor BM25 sees.

Words that are common among the texts compared count less. Source: term proximity in ranking (Tao and Zhai 2007), and passages
instead of whole documents (Callan 1994). Decision 0064 has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cmt_core.retrieval.stems import Pairs, StemmedText, neighbours, rarity, stemmed, stems

__all__ = ["RERANKED", "proximity"]

RERANKED = 16
"""Texts a question that are looked at, the best by key and BM25: they hold the right one for 98% of squad_dev's questions."""


def proximity(question: str, texts: Sequence[str]) -> list[float]:
    """How much of the question stands close together in each text, 0 to 1; English stems.

    Half of it is the share of the question's words that the best two sentences in a row hold, each word weighed by its rarity
    among the texts; half the share of its pairs of neighbouring words that are neighbours in the text. A question of stop words
    has 0 everywhere.
    """
    asked = stems(question)
    wanted, pairs = frozenset(asked), neighbours(asked)
    compared = [stemmed(text) for text in texts]
    weights = rarity(wanted, compared)
    return [_share(wanted, pairs, weights, one) for one in compared]


def _share(wanted: frozenset[str], pairs: Pairs, weights: Mapping[str, float], text: StemmedText) -> float:
    if not wanted:
        return 0.0
    best = max((sum(weights[word] for word in wanted & span) for span in text.spans), default=0.0)
    return 0.5 * best / sum(weights.values()) + 0.5 * len(pairs & text.pairs) / max(1, len(pairs))
