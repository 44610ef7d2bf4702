"""ψ's temperature, likelihood weight and relevance threshold, from questions whose own window is known.

Some dozen easy questions can't tell much, and taken alone they ask for the sharpest settings: so what many questions have shown
(decisions 0021 and 0065) counts beside them, as a prior.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.fitting.fit_config import Progress
from cmt_core.fitting.reader import ChatReader, Item
from cmt_core.retrieval.query_likelihood import query_log_likelihood
from cmt_core.retrieval.retriever import Retriever

__all__ = ["Calibration", "calibrate"]

_CANDIDATES = 4
_TEMPERATURES = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.37, 0.5, 0.7, 1.0)
_THRESHOLDS = (0.15, 0.5)  # between these a threshold is believed, whatever so few questions say
_PRIOR_NATS = 1.0  # for each unit of `_distance`
_SHOWN = MemoryConfig()  # temperature, weight and threshold that many questions have shown, with the default retriever


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found, with the mean log-probability in nats that ψ's prior gives the own window (`own_nats`)."""

    prior_temperature: float
    likelihood_weight: float
    min_score: float
    own_nats: float


def calibrate(
    reader: ChatReader,
    retriever: Retriever,
    items: Sequence[Item],
    texts: Sequence[str],
    coded: Sequence[Tensor],
    progress: Progress,
    stage: str,
    known_retriever: bool = False,
) -> Calibration:
    """Finds the settings by which the own window of `items` (the first of `texts`, all windows) is told from the others.

    `coded` are the rows (t, X) that all windows' codes stand for. Of a `known_retriever`, the default one, the threshold is
    known.
    """
    # imported here alone: where no checkpoint is fitted, the packages of the word search can be missing
    from cmt_core.retrieval.hybrid import HybridIndex

    questions = [item.question for item in items]
    keys, asked = retriever.document_keys(texts), retriever.query_keys(questions)
    index = HybridIndex(texts, keys.vectors, tokens=keys.tokens)
    found = index.nearest(questions, asked.vectors, _CANDIDATES, tokens=asked.tokens)
    candidates = [[one.row for one in rows] for rows in found]
    scores = [[one.score for one in rows] for rows in found]
    nats = _likelihoods(reader, questions, candidates, coded, progress, stage)
    temperature, weight, own = _best_prior(candidates, scores, nats)
    cosines = asked.vectors.astype(np.float32) @ keys.vectors.astype(np.float32).T
    return Calibration(temperature, weight, _SHOWN.min_score if known_retriever else _threshold(cosines), own)


def _likelihoods(
    reader: ChatReader,
    questions: Sequence[str],
    candidates: Sequence[Sequence[int]],
    coded: Sequence[Tensor],
    progress: Progress,
    stage: str,
) -> list[list[float]]:
    """Log-probability of each question behind each of its candidates' memories."""
    made: list[list[float]] = []
    for question, rows in zip(questions, candidates, strict=True):
        asked = [reader.prompting.for_likelihood(question)] * len(rows)
        context = reader.context([coded[row] for row in rows])
        made.append(query_log_likelihood(reader.backbone, context, asked))
        progress(stage, len(made), len(questions))
    return made


def _best_prior(
    candidates: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], nats: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """Temperature and weight under which the own window, where it was found, has the highest log-share, the prior counted."""
    known = [number for number, rows in enumerate(candidates) if number in rows]
    if not known:
        return _SHOWN.prior_temperature, _SHOWN.likelihood_weight, float("nan")
    own = torch.tensor([list(candidates[number]).index(number) for number in known])
    by_score = torch.tensor([scores[number] for number in known], dtype=torch.float32)
    by_nats = torch.tensor([nats[number] for number in known], dtype=torch.float32)

    def value(pair: tuple[float, float]) -> float:
        temperature, weight = pair
        shares = (by_score / temperature + weight * by_nats).log_softmax(dim=-1)
        return float(shares.gather(1, own[:, None]).clamp_min(-5).mean())  # one that is lost is not chased

    def weighed(pair: tuple[float, float]) -> float:
        return len(known) * value(pair) - _PRIOR_NATS * _distance(pair)

    best = max(itertools.product(_TEMPERATURES, _WEIGHTS), key=weighed)
    return *best, value(best)


def _distance(pair: tuple[float, float]) -> float:
    """How far temperature and weight are from those that many questions have shown."""
    temperature, weight = pair
    return abs(math.log(temperature / _SHOWN.prior_temperature)) + abs(weight - _SHOWN.likelihood_weight)


def _threshold(cosines: NDArray[np.float32]) -> float:
    """The cosine that best tells questions (rows) with their own window (the same column) in the bank from those without."""
    questions = np.arange(len(cosines))
    own = cosines[questions, questions]
    others = cosines.copy()
    others[questions, questions] = -1.0
    foreign = others.max(axis=1)
    edges = np.linspace(*_THRESHOLDS, 36)
    right = [float((np.maximum(own, foreign) >= edge).mean() + (foreign < edge).mean()) for edge in edges]
    best = np.flatnonzero(np.asarray(right) >= max(right) - 1e-9)
    return round(float(edges[best[len(best) // 2]]), 3)
