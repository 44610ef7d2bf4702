"""Whether what was found is about the question: by the cosine of its key and by the question's words together.

A sentence encoder finds the subject and not the answer: most questions about a missing article have a near enough other one. What
they lack are words: those of a question that its article answers stand close together in it. Decision 0154 has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

from cmt_core.config import MIN_EVIDENCE
from cmt_core.retrieval.complement import completed_by
from cmt_core.retrieval.proximity import RERANKED, proximity

__all__ = ["evidence", "relevant"]


def relevant(
    lookups: Sequence[str],
    texts: Sequence[str],
    cosines: Sequence[float],
    min_score: float,
    min_evidence: float = MIN_EVIDENCE,
) -> list[bool]:
    """Which of the texts that were found for a question, best first, are relevant to it.

    `lookups` are the texts it was looked up by, its own first. A text is relevant when its cosine and the proximity of the
    question's words in it reach `min_score` + `min_evidence` together, or when it completes the first one that does. With
    `min_evidence` 0 the cosine alone counts, and must reach `min_score`.
    """
    if min_evidence <= 0:
        return [cosine >= min_score for cosine in cosines]
    fit = [both >= min_score + min_evidence for both in evidence(lookups, texts, cosines)]
    if any(fit) and (other := completed_by(lookups[0], texts)[fit.index(True)]) is not None:
        fit[other] = True
    return fit


def evidence(lookups: Sequence[str], texts: Sequence[str], cosines: Sequence[float]) -> list[float]:
    """Cosine and proximity of each text together, the best lookup's counted."""
    compared = [
        *texts,
        *[""] * (RERANKED - len(texts)),
    ]  # a word that few texts have is rare among as many as in the search
    close = [proximity(lookup, compared)[: len(texts)] for lookup in lookups]
    best = [max(own) for own in zip(*close, strict=True)] if close else [0.0] * len(texts)
    return [cosine + near for cosine, near in zip(cosines, best, strict=True)]
