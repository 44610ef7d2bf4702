"""Where an answer may begin in several ways, and which of the answers that come of them is the likeliest.

The likeliest first token is not always that of the likeliest answer. Source of the comparison of answers of different lengths:
the length normalisation of beam search (Wu et al. 2016, arXiv 1609.08144). docs/decisions/0178 has the measurements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from cmt_core.generation.spelling import Speller, likeliest_first

__all__ = ["LONGEST_CANDIDATE", "first_tokens", "likeliness"]

LONGEST_CANDIDATE = 24
"""Tokens after which candidates are compared though they have not ended: an answer of a few words has."""

_NEAR_NATS = 1.0  # a beginning this much less likely than the best one is not followed up
_LENGTH_POWER = 0.3


def first_tokens(logits: Tensor, speller: Speller | None, most: int) -> list[tuple[int, float]]:
    """At most so many first tokens of an answer with their log-probabilities in nats, the likeliest first; logits (V,).

    With a speller those that it lets pass; where it lets none pass the likeliest.
    """
    nats = logits.float().log_softmax(dim=-1)
    likely = likeliest_first(logits)
    fitting = list(itertools.islice(speller.fitting((), likely) if speller else likely, most))
    tokens = fitting or [int(logits.argmax())]
    best = float(nats[tokens[0]])
    return [(token, own) for token in tokens if (own := float(nats[token])) >= best - _NEAR_NATS]


def likeliness(nats: Sequence[float]) -> float:
    """How likely an answer is beside others of any length, by its tokens' log-probabilities, that of its end included."""
    return sum(nats) / math.pow(len(nats), _LENGTH_POWER)
