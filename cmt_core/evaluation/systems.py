"""The systems that are compared on one bank with one frozen LLM; each answers from the rows that retrieval found for it.

`select`, `single_context` and `stack` read memories with that aggregation ψ, `rag_prefix` the same documents' text behind the
prefix that was tuned on text, `rag_bare` the text in the LLM's own chat prompt, `closed` nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmt_core.errors import ConfigError
from cmt_core.evaluation.bank import EvaluationBank
from cmt_core.hybrid import Found
from cmt_core.model import CMT, Answer

__all__ = ["SYSTEMS", "System", "system"]

SYSTEMS = ("select", "single_context", "stack", "rag_prefix", "rag_bare", "closed")

Read = Callable[[EvaluationBank, Sequence[str], Sequence[Sequence[Found]], int], list[Answer]]


@dataclass(frozen=True, slots=True)
class System:
    """Answers questions from rows of a bank of `model`'s memories; `reads` is what of them reaches the LLM."""

    name: str
    model: CMT
    reads: str  # memory, text or nothing
    answer: Read


def system(name: str, model: CMT, single_context: CMT | None = None) -> System:
    """The system of that name around `model`, or around the paper's checkpoint `single_context`.

    Raises ConfigError for a name that is not known and for a system that the checkpoint can't be.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"system {name!r} is not known; known are {', '.join(SYSTEMS)}")
    if name == "single_context":
        return System(name, _of(single_context or model, name), "memory", _memory)
    if name == "select":
        return System(name, _of(model, name), "memory", _memory)
    if name == "stack":
        return System(name, _stacked(model), "memory", _memory)
    if name == "closed":
        return System(name, model, "nothing", lambda bank, asked, rows, n: model.answer_closed(asked, max_new_tokens=n))
    return System(name, model, "text", _text(model.answer_rag if name == "rag_prefix" else model.answer_bare))


def _of(model: CMT, aggregation: str) -> CMT:
    if model.config.aggregation != aggregation:
        raise ConfigError(
            f"system {aggregation!r} needs a checkpoint with that aggregation; this one has {model.config.aggregation!r}"
        )
    return model


def _stacked(model: CMT) -> CMT:
    """The same memories, read without selection."""
    if model.config.aggregation == "single_context":
        raise ConfigError("memories of a single_context checkpoint can't be stacked")
    stacked = copy.copy(model)
    stacked.select = None
    return stacked


def _memory(bank: EvaluationBank, asked: Sequence[str], rows: Sequence[Sequence[Found]], limit: int) -> list[Answer]:
    codes = bank.codes([[one.row for one in row] for row in rows])
    scores = [[one.score for one in row] for row in rows]
    return bank.model.answer(asked, codes, scores=scores, max_new_tokens=limit)


def _text(read: Callable[..., list[Answer]]) -> Read:
    def answer(bank: EvaluationBank, asked: Sequence[str], rows: Sequence[Sequence[Found]], limit: int) -> list[Answer]:
        texts = [[bank.windows[one.row].reading for one in row] for row in rows]
        return read(asked, texts, max_new_tokens=limit)

    return answer
