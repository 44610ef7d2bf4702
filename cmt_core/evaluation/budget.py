"""How much of a memory's size the answers need: the same questions at several numbers of bits a token.

The checkpoint's code stays as it was trained; only the rounding of its components changes, by the same reverse water-filling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmt_core.data.qa import QAExample
from cmt_core.evaluation.bank import filled_bank, own_window
from cmt_core.evaluation.rounding import FLOAT16, kv_code_format, with_bits
from cmt_core.evaluation.stream import sample, score_system
from cmt_core.evaluation.systems import system
from cmt_core.memory.format import Memory
from cmt_core.model import CMT

__all__ = ["BudgetPoint", "budgets", "rounding"]


@dataclass(frozen=True, slots=True)
class BudgetPoint:
    """Scores with memories of `window_kb` kilobytes a window; `f1_kept` is F1 in per cent of the first point's."""

    window_kb: float
    system: str
    bits_per_token: int
    em: float
    f1: float
    f1_kept: float
    oracle_em: float | None
    oracle_f1: float | None


def budgets(
    model: CMT,
    examples: Sequence[QAExample],
    bits: Sequence[int],
    *,
    questions: int,
    documents: int | None = None,
    k: int = 2,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> list[BudgetPoint]:
    """Scores the checkpoint's own system at each number of bits a token, largest memories first in the figures.

    The LLM reads every window once; each budget rounds the same codes. Raises ConfigError as `with_bits` does, before anything
    slow.
    """
    models = [with_bits(model, one) for one in bits]
    chosen, asked = sample(examples, questions, documents, seed)
    exact = filled_bank(with_bits(model, FLOAT16), chosen)
    found = {one.row for row in exact.nearest([row.question for row in asked], k) for one in row}
    read = sorted(found | {own_window(exact, row) for row in asked})
    exact.codes([read])
    points: list[BudgetPoint] = []
    for one, number in sorted(zip(models, bits, strict=True), key=lambda pair: -pair[0].memory_bytes):
        bank = exact.converted(one, rounding(exact.model, one))
        scores = score_system(system(model.config.aggregation, one), bank, asked, k)
        start = points[0].f1 if points else scores.f1
        kept = round(100 * scores.f1 / start, 1) if start else 0.0
        size = round(one.memory_bytes / 1000, 1)
        points.append(
            BudgetPoint(size, scores.system, number, scores.em, scores.f1, kept, scores.oracle_em, scores.oracle_f1)
        )
        report(f"{size} kB a window: EM {scores.em:.1f} F1 {scores.f1:.1f} ({kept:.0f}% kept)")
    return points


def rounding(exact: CMT, model: CMT) -> Callable[[Memory], Memory]:
    """How a float16 memory becomes the one that `model` would have written."""
    read, write = kv_code_format(exact), kv_code_format(model)

    def rounded(memory: Memory) -> Memory:
        codes, lengths = read.codes([memory.code])
        return write.rounded(codes[None], lengths)[0]

    return rounded
