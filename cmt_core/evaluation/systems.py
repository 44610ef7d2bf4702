"""The systems that are compared on one bank with one frozen LLM; each answers from the rows that retrieval found for it.

`select` and `stack` read memories with that aggregation ψ, `rag_prefix` the same documents' text behind the prefix that was
tuned on text, `rag_bare` the text in the LLM's own chat prompt, `closed` nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmt_core.errors import ConfigError
from cmt_core.evaluation.bank import EvaluationBank
from cmt_core.model import CMT, Answer

__all__ = ["SYSTEMS", "System", "system"]

SYSTEMS = ("select", "stack", "rag_prefix", "rag_bare", "closed")


@dataclass(frozen=True, slots=True)
class System:
    """Answers questions from the rows of a bank; `reads` is what of them reaches the LLM."""

    name: str
    reads: str  # memory, text or nothing
    answer: Callable[[EvaluationBank, Sequence[str], Sequence[Sequence[int]], int], list[Answer]]


def system(name: str, model: CMT) -> System:
    """The system of that name around `model`; ConfigError when it is not known or needs another checkpoint."""
    if name == "select" and model.select is None:
        raise ConfigError("this checkpoint has no `select` aggregation; its memories are read with `stack`")
    match name:
        case "select":
            return System(name, "memory", _memory(model))
        case "stack":
            stacked = copy.copy(model)
            stacked.select = None
            return System(name, "memory", _memory(stacked))
        case "rag_prefix":
            return System(name, "text", _text(model.answer_rag))
        case "rag_bare":
            return System(name, "text", _text(model.answer_bare))
        case "closed":
            return System(
                name, "nothing", lambda bank, asked, rows, limit: model.answer_closed(asked, max_new_tokens=limit)
            )
    raise ConfigError(f"system {name!r} is not known; known are {', '.join(SYSTEMS)}")


def _memory(model: CMT) -> Callable[[EvaluationBank, Sequence[str], Sequence[Sequence[int]], int], list[Answer]]:
    def answer(bank: EvaluationBank, asked: Sequence[str], rows: Sequence[Sequence[int]], limit: int) -> list[Answer]:
        return model.answer(asked, bank.codes(rows), max_new_tokens=limit)

    return answer


def _text(
    read: Callable[..., list[Answer]],
) -> Callable[[EvaluationBank, Sequence[str], Sequence[Sequence[int]], int], list[Answer]]:
    def answer(bank: EvaluationBank, asked: Sequence[str], rows: Sequence[Sequence[int]], limit: int) -> list[Answer]:
        return read(asked, [[bank.windows[r].reading for r in row] for row in rows], max_new_tokens=limit)

    return answer
