"""Scores of an answer against gold answers, as SQuAD and the papers of this field define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from cmt_core.text.normalisation import normalised

__all__ = ["contains_answer", "contains_facts", "exact_match", "f1", "normalise", "papers_exact_match"]

_CURLY = re.compile("[“”„‘’«»]")  # SQuAD's punctuation has the straight ones alone
_PUNCTUATION = set(string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    bare = "".join(char for char in normalised(text).lower() if char not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction is one of the normalised answers."""
    return float(any(normalise(prediction) == normalise(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1, best over the gold answers."""
    return max(_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def papers_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """The laxer EM of MAC and CMT: the shortest gold answer, normalised, begins the normalised prediction."""
    shortest = min((normalise(answer) for answer in answers), key=len)
    return float(bool(shortest) and normalise(prediction).startswith(shortest))


def contains_answer(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a normalised gold answer occurs in the normalised prediction, at word borders."""
    padded = f" {normalise(prediction)} "
    return any(f" {gold} " in padded for answer in answers if (gold := normalise(answer)))


def contains_facts(prediction: str, facts: Sequence[Sequence[str]]) -> bool:
    """Whether every fact occurs in the normalised prediction in one of its wordings.

    A wording begins a word and may lack its ending (nest, nests); a number is the whole number.
    """
    told = f" {normalise(_CURLY.sub('', prediction))} "
    return all(any(_tells(told, normalise(wording)) for wording in fact) for fact in facts)


def _tells(told: str, wording: str) -> bool:
    return f" {wording}{' ' if wording[-1:].isdigit() else ''}" in told


def _f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = sum((Counter(prediction) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)
