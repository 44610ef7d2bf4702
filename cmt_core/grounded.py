"""Answers from memory that are compared with their sources, and read again from text where they don't stand there (mode `auto`).

The service does the same to answers on their way out (services/query/engine/checked_text.py). Why: docs/decisions/0150.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cmt_core.generation.asking import QuestionBatch
from cmt_core.model import CMT, Answer
from cmt_core.retrieval.looks import most_read
from cmt_core.text.grounding import Verdict, grounding_of, parts_of

__all__ = ["Grounding", "TextReads", "ground", "of_most_read", "read_again", "text_reads"]


@dataclass(frozen=True, slots=True)
class Grounding:
    """How an answer stands in its sources: its parts' verdicts, and the parts before the first that does not."""

    verdicts: tuple[Verdict, ...]
    begun: str

    @property
    def grounded(self) -> bool:
        """Whether all of it does."""
        return bool(self.verdicts) and all(one.grounded for one in self.verdicts)

    @property
    def garbled(self) -> bool:
        """Whether it has a name, a number or a quotation that no source has."""
        return any(one.missing for one in self.verdicts)


@dataclass(frozen=True, slots=True)
class TextReads:
    """Which of some questions are read again from text: their numbers, the texts of each, and the beginning that stays."""

    rows: list[int]
    texts: list[list[str]]
    begun: list[str]


def of_most_read(answer: Answer, k: int) -> tuple[Answer, list[int]]:
    """The answer as of the k memories with most attention, which are its sources, and these memories' places.

    Only of an answer whose `weights` name every memory that was given.
    """
    places = most_read(answer.weights, k, answer.together)
    together = tuple(places.index(place) for place in answer.together)
    return replace(answer, weights=[answer.weights[place] for place in places], together=together), places


def ground(model: CMT, question: str, answer: Answer, texts: Sequence[str]) -> Grounding:
    """Compares an answer with the texts of what it was read from, in the order of its weights' memories."""
    order = range(len(texts))
    if len(answer.weights) == len(texts):
        order = sorted(order, key=lambda number: -answer.weights[number])  # type: ignore[assignment]
    ranked = [texts[number] for number in order]
    parts = parts_of(answer.text, by_sentence=model.follows_instructions)
    verdicts = tuple(grounding_of(part, ranked, question) for part in parts)
    kept = next((number for number, one in enumerate(verdicts) if not one.grounded), len(parts))
    return Grounding(verdicts, " ".join(parts[:kept]))


def text_reads(
    model: CMT, questions: Sequence[str], answers: Sequence[Answer], texts: Sequence[Sequence[str]]
) -> TextReads:
    """The questions that take two texts together, to be read from these, and those whose answers don't stand in their texts, to
    be read from the one that was attended to most.
    """
    reads = TextReads([], [], [])
    for row, (question, answer, own) in enumerate(zip(questions, answers, texts, strict=True)):
        if answer.together:
            reads.rows.append(row)
            reads.texts.append([own[number] for number in answer.together])
            reads.begun.append("")
            continue
        found = ground(model, question, answer, own)
        if found.grounded or not own:
            continue
        known = answer.weights if len(answer.weights) == len(own) else [0.0] * len(own)
        best = max(range(len(own)), key=lambda number: known[number])
        reads.rows.append(row)
        reads.texts.append([own[best]])
        reads.begun.append(found.begun)
    return reads


def read_again(model: CMT, questions: Sequence[str], reads: TextReads, instructions: str = "") -> QuestionBatch:
    """What the questions of `reads` are asked with; their answers go on behind what was begun."""
    asked = model.ask_of_text([questions[row] for row in reads.rows], reads.texts, instructions)
    begun = [model.tokens.ids(text) if text else [] for text in reads.begun]
    return replace(asked, prompts=[[*prompt, *ids] for prompt, ids in zip(asked.prompts, begun, strict=True)])
