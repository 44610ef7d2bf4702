"""What each part of the method is worth: checkpoints trained without it, or read without it, on the same questions.

Top-k aggregation is left out by reading all windows of the bank at once, which only `single_context` can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmt_core.data.qa import QAExample
from cmt_core.errors import ConfigError
from cmt_core.evaluation.bank import filled_bank
from cmt_core.evaluation.stream import sample, score_system
from cmt_core.evaluation.systems import system
from cmt_core.model import CMT

__all__ = ["AblationPoint", "Variant", "ablation"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A checkpoint under the name of what it leaves out; `k` documents are read per question, all of them when None."""

    name: str
    model: CMT
    k: int | None


@dataclass(frozen=True, slots=True)
class AblationPoint:
    """One variant's scores; `row` is its place in the table, `f1_lost` against the first variant."""

    row: int
    system: str
    k: int
    em: float
    f1: float
    f1_lost: float
    oracle_f1: float | None


def ablation(
    variants: Sequence[Variant],
    examples: Sequence[QAExample],
    *,
    questions: int,
    documents: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> list[AblationPoint]:
    """Scores every variant on the same questions and windows. Raises ConfigError for one that can't read all windows at once."""
    for one in variants:
        if one.k is None and one.model.config.aggregation != "single_context":
            raise ConfigError(f"{one.name}: only single_context can aggregate all documents; give it a number of them")
    chosen, asked = sample(examples, questions, documents, seed)
    bank = filled_bank(variants[0].model, chosen)
    points: list[AblationPoint] = []
    for row, one in enumerate(variants):
        k = one.k or len(bank.rows)
        scores = score_system(system(one.model.config.aggregation, one.model), bank, asked, k)
        lost = round((points[0].f1 if points else scores.f1) - scores.f1, 2)
        points.append(AblationPoint(row, one.name, k, scores.em, scores.f1, lost, scores.oracle_f1))
        report(f"{one.name}: EM {scores.em:.1f} F1 {scores.f1:.1f} ({lost:.1f} lost)")
    return points
