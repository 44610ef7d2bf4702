"""What is asked of the LLM in a running batch: plain values, importable without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["GREEDY", "MOST_CANDIDATES", "AnswerStart", "Mode", "Query", "Sampling"]

MOST_CANDIDATES = 4
"""Of how many answers, where as many beginnings are likely, the likeliest is taken, if nothing else is asked for."""

Mode = Literal["auto", "memory", "rag", "hybrid", "closed"]
"""What is read for an answer; `auto` is memory first and, where its answer does not stand in its sources, text: two queries."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else from the smallest set of probability `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Query:
    """One question with what it reads: packed memories (memory, hybrid), texts (rag, hybrid), or nothing (closed).

    `scores` are the retriever's of each memory, where ψ may go by them; all queries of a service have them or none has.
    `completed_by` says of each memory which other one has words of the question that it lacks (retrieval/complement.py).
    `earlier` are the conversation's questions with their answers. `memory_weight` w mixes next-token scores with those of the
    same prompt without a memory: w * with + (1 - w) * without; 1 reads the memory alone, more than 1 contrasts, None is as the
    checkpoint was trained (memory) or 1 (rag, hybrid).
    `instructions` replace the system message where there is one (closed). `begun` is the beginning of an answer that is to go on.
    `spelled_from` are texts of which the answer is to be a span; the LLM does not read them. Of up to so many `candidates`, which
    begin with other likely tokens, the likeliest is the answer; a drawn answer has one.
    """

    question: str
    mode: Mode = "memory"
    memories: Sequence[bytes] = ()
    scores: Sequence[float] | None = None
    completed_by: Sequence[int | None] | None = None
    passages: Sequence[str] = ()
    earlier: tuple[tuple[str, str], ...] = ()
    instructions: str = ""
    begun: str = ""
    spelled_from: Sequence[str] = ()
    candidates: int = 1
    sampling: Sampling = GREEDY
    memory_weight: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerStart:
    """A query that joined: its row's number, tokens of its prompt, each memory's weight, and the tokens that it begins with, as
    far as they are known (None: its end).

    `together` are the memories that it takes together, in their order; empty where it takes no two.
    """

    row: int
    prompt_tokens: int
    weights: list[float]
    tokens: Sequence[int | None] = ()
    together: tuple[int, ...] = ()
