"""The systems that are compared on one bank with one frozen LLM; each answers from the rows that retrieval found for it.

`select`, `single_context` and `stack` read memories with that aggregation ψ, `rag_prefix` the same documents' text behind the
prefix that was tuned on text, `rag_bare` the text in the LLM's own chat prompt, `closed` nothing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cmt_core.errors import ConfigError
from cmt_core.evaluation.bank import EvaluationBank
from cmt_core.hybrid import Found
from cmt_core.model import CMT, Answer

__all__ = ["SYSTEMS", "System", "system", "system_at"]

SYSTEMS = ("select", "single_context", "stack", "rag_prefix", "rag_bare", "closed")

_BATCH = 8

Read = Callable[[EvaluationBank, Sequence[str], Sequence[Sequence[Found]], int], list[Answer]]
_Key = tuple[str, tuple[str, ...], tuple[float, ...], int]  # question, windows read, their scores, longest answer


@dataclass(frozen=True, slots=True)
class System:
    """Answers questions from rows of a bank of `model`'s memories; `reads` is what of them reaches the LLM.

    An answer is made once: to the same question from the same windows it is the same one again, with the seconds it took. So
    a system belongs to the banks of one checkpoint's memories.
    """

    name: str
    model: CMT
    reads: str  # memory, text or nothing
    read: Read
    _made: dict[_Key, tuple[Answer, float]] = field(default_factory=dict)

    def answers(
        self, bank: EvaluationBank, asked: Sequence[str], rows: Sequence[Sequence[Found]], max_new_tokens: int
    ) -> tuple[list[Answer], float]:
        """One answer a question from its own rows, and the seconds that all of them took when they were made."""
        keys = [self._key(bank, *each, max_new_tokens) for each in zip(asked, rows, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._made]
        new.sort(key=lambda i: sum(map(len, keys[i][1])))  # texts of like length are padded least
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            started = time.perf_counter()
            made = self.read(bank, [asked[i] for i in batch], [rows[i] for i in batch], max_new_tokens)
            each_took = (time.perf_counter() - started) / len(batch)
            self._made.update({keys[i]: (answer, each_took) for i, answer in zip(batch, made, strict=True)})
        found = [self._made[key] for key in keys]
        return [answer for answer, _ in found], sum(seconds for _, seconds in found)

    def _key(self, bank: EvaluationBank, question: str, rows: Sequence[Found], max_new_tokens: int) -> _Key:
        if self.reads == "nothing":
            return question, (), (), max_new_tokens
        # scores say how likely a document is beside the others: none are needed for one alone, and text has no such weights
        weighed = self.reads == "memory" and len(rows) > 1
        scores = tuple(one.score for one in rows) if weighed else ()
        return question, tuple(bank.windows[one.row].reading for one in rows), scores, max_new_tokens


def system_at(spec: str, k: int) -> tuple[str, int]:
    """Name and k of `NAME` (with the k of all systems) or `NAME@K`; raises ConfigError."""
    name, at, own = spec.partition("@")
    if not at:
        return name, k
    if not (own.isdigit() and int(own) > 0):
        raise ConfigError(f"{spec!r} is not SYSTEM@K with K a number of documents")
    return name, int(own)


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
