"""Which documents may answer a question only together: one has words of the question that the other lacks.

"Who won the by-election in the district where Noor Hallivane came out of the water?" describes the article about the swim, which
says nothing of an election. Every other signal judges documents one by one, and so prefers that one. ψ asks the LLM whether it
takes both (reading/aggregation.py). Decision 0173 has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

from cmt_core.retrieval.proximity import RERANKED
from cmt_core.retrieval.stems import rarity, stemmed, stems

__all__ = ["completed_by"]

_LEAST_WORDS = 2  # a single word stands in another paragraph of the same subject by chance
_LEAST_SHARE = 0.15


def completed_by(question: str, texts: Sequence[str]) -> list[int | None]:
    """For each text the number of the one that has most of the question's words which it lacks; None where none has enough.

    Enough are two words, and 15% of the question when each of its words is weighed by its rarity, as among 16 texts.
    """
    wanted = frozenset(stems(question))
    compared = [stemmed(text).words & wanted for text in texts]
    weights = rarity(wanted, [stemmed(text) for text in texts], RERANKED)
    enough = _LEAST_SHARE * sum(weights.values())
    found: list[int | None] = []
    for own in compared:
        new = [other - own for other in compared]
        added = [sum(map(weights.__getitem__, one)) if len(one) >= _LEAST_WORDS else 0.0 for one in new]
        most = max(range(len(texts)), key=added.__getitem__)
        found.append(most if added[most] > 0 and added[most] >= enough else None)
    return found
