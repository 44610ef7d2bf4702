"""A running batch of answers, each of which may be written in several ways at once until the likeliest of them is known.

Most answers have one likely beginning: their tokens come out as they are written. Those of several come out together, with the
last token of the last candidate; then the others leave.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cmt_core.generation.beginnings import LONGEST_CANDIDATE, likeliness
from cmt_core.generation.continuous import ContinuousBatch, SequenceStart
from cmt_core.generation.greedy import GeneratedTokens
from cmt_core.generation.query import GREEDY, Sampling
from cmt_core.generation.spelling import Speller
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context

__all__ = ["CandidateBatch", "WrittenStart", "generate_likeliest"]


class WrittenStart(NamedTuple):
    """An answer's number, the tokens it begins with as far as they are known (None: its end), and its prompt's attention over
    the context's columns (S,)."""

    row: int
    tokens: list[int | None]
    attention: Tensor


@dataclass(slots=True)
class _Answer:
    """An answer by the sequences that may become it: tokens of those that are `open`, likeliness and tokens of those that ended.

    Once it is `decided` one sequence goes on, or none.
    """

    stop_ids: Collection[int]
    open: dict[int, list[int]]
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    decided: bool = False


class CandidateBatch:
    """Answers side by side, a token a `step` for each of their candidates; not thread-safe."""

    def __init__(self, backbone: Backbone) -> None:
        self._sequences = ContinuousBatch(backbone)
        self._answers: dict[int, _Answer] = {}
        self._next_row = 0

    def __len__(self) -> int:
        """Answers that have not left."""
        return len(self._answers)

    def join(
        self,
        context: Context,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        stop_ids: Collection[int],
        plain: Context | None = None,
        weights: Sequence[float] = (),
        spellers: Sequence[Speller | None] = (),
        candidates: Sequence[int] = (),
    ) -> list[WrittenStart]:
        """As ContinuousBatch.join, with up to so many `candidates` of each answer (one without it, or where it is drawn)."""
        started = self._sequences.join(context, prompts, sampling, plain, weights, spellers, candidates)
        joined: list[WrittenStart] = []
        for prompt in range(len(prompts)):
            own = self._of_words([one for one in started if one.prompt == prompt], stop_ids)
            number, self._next_row = self._next_row, self._next_row + 1
            answer = _Answer(stop_ids, {one.row: [] for one in own}, decided=len(own) == 1)
            self._answers[number] = answer
            joined.append(
                WrittenStart(number, self._take(answer, {one.row: one.token for one in own}), own[0].attention)
            )
        return joined

    def step(self) -> dict[int, list[int | None]]:
        """What is new of every answer that has not ended, by its number: nothing while its candidates are written."""
        tokens = self._sequences.step()
        return {
            number: self._take(answer, {row: tokens[row] for row in answer.open})
            for number, answer in self._answers.items()
            if answer.open
        }

    def leave(self, row: int) -> None:
        """Ends an answer, whether it is done or not wanted any more."""
        self._drop(self._answers.pop(row))

    def _of_words(self, begun: list[SequenceStart], stop_ids: Collection[int]) -> list[SequenceStart]:
        """The candidates that begin with a word, or the first alone where it is the likeliest to say nothing."""
        kept = begun[:1] if begun[0].token in stop_ids else [one for one in begun if one.token not in stop_ids]
        for row in {one.row for one in begun} - {one.row for one in kept}:
            self._sequences.leave(row)
        return kept

    def _take(self, answer: _Answer, tokens: Mapping[int, int]) -> list[int | None]:
        """Gives what is known of an answer since each of its sequences has its next token."""
        if answer.decided:
            (token,) = tokens.values()
            if token not in answer.stop_ids:
                return [token]
            self._drop(answer)
            return [None]
        for row, token in tokens.items():
            if token not in answer.stop_ids:
                answer.open[row].append(token)
            else:
                answer.ended.append((likeliness(self._sequences.nats(row)), answer.open.pop(row)))
                self._sequences.leave(row)
        if answer.open and max(map(len, answer.open.values())) < LONGEST_CANDIDATE:
            return []
        return self._decided(answer)

    def _decided(self, answer: _Answer) -> list[int | None]:
        """The tokens of the likeliest candidate; the others leave."""
        answer.decided = True
        going_on = [(likeliness(self._sequences.nats(row)), tokens, row) for row, tokens in answer.open.items()]
        _, tokens, row = max([*going_on, *((*ended, None) for ended in answer.ended)], key=itemgetter(0))
        kept = {} if row is None else {row: answer.open.pop(row)}
        self._drop(answer)
        answer.open = kept
        return list(tokens) if kept else [*tokens, None]

    def _drop(self, answer: _Answer) -> None:
        for row in answer.open:
            self._sequences.leave(row)
        answer.open.clear()


@torch.inference_mode()
def generate_likeliest(
    backbone: Backbone,
    context: Context,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: set[int],
    spellers: Sequence[Speller | None] = (),
    plain: Context | None = None,
    weight: float = 1.0,
    candidates: int = 1,
) -> list[GeneratedTokens]:
    """As `generate`, the likeliest of so many candidates of each answer.

    With a `plain` context of the same B rows tokens are chosen by w * logits behind `context` + (1 - w) * logits behind
    `plain`: the memory-aware objective of CMT (arXiv 2412.07393), at inference.
    """
    B, batch = len(prompts), CandidateBatch(backbone)
    weights = [weight] * B if plain is not None else []
    joined = batch.join(context, prompts, [GREEDY] * B, stop_ids, plain, weights, spellers, [candidates] * B)
    written: dict[int, list[int | None]] = {one.row: [] for one in joined}
    new = {one.row: one.tokens for one in joined}
    while new:
        for row, tokens in new.items():
            written[row] += tokens
            if None in tokens or len(written[row]) >= max_new_tokens:
                batch.leave(row)
        new = batch.step()
    made = [(one, [token for token in written[one.row] if token is not None]) for one in joined]
    return [
        GeneratedTokens(ids[:max_new_tokens], _reason(written[one.row], max_new_tokens), one.attention)
        for one, ids in made
    ]


def _reason(written: Sequence[int | None], most: int) -> Literal["stop", "length"]:
    return "stop" if None in written[: most + 1] else "length"
