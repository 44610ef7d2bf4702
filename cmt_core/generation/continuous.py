"""Iteration-level batching: sequences join and leave a running batch between any two tokens (Orca, Yu et al. 2022).

This is the inside of our own engine; what crosses the seam to it or another one is in engine.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cmt_core.generation.beginnings import first_tokens
from cmt_core.generation.greedy import PrefillResult, prefill
from cmt_core.generation.mixed_logits import memory_aware
from cmt_core.generation.query import Sampling
from cmt_core.generation.spelling import Speller
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.llm.kv_slots import KVSlots

__all__ = ["ContinuousBatch", "SequenceStart"]


class SequenceStart(NamedTuple):
    """A sequence's number, its first token, its prompt's attention over the context's columns (S,), and which prompt it is of."""

    row: int
    token: int
    attention: Tensor
    prompt: int


@dataclass(slots=True)
class _Sequence:
    """A running sequence: its slots of the cache (one, or two where a plain context is mixed in) and its last token.

    What is `written` of it is kept where it has a speller, the log-probabilities of its tokens (`nats`) where it is one of
    several candidates.
    """

    slots: list[int]
    token: int
    sampling: Sampling
    weight: float
    generator: torch.Generator | None = field(default=None)
    speller: Speller | None = field(default=None)
    written: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)


class ContinuousBatch:
    """A running batch on our own LLM, one token a `step` for all; not thread-safe.

    Every sequence keeps its own columns, without gaps, so what it writes does not depend on who else is running (to the
    rounding of the number type: in float32 the same tokens come out, in bfloat16 two nearly equal scores may change places).
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._cache = KVSlots(backbone.shape, backbone.device, backbone.dtype)
        self._running: dict[int, _Sequence] = {}
        self._next_row = 0

    def __len__(self) -> int:
        """Sequences running."""
        return len(self._running)

    @torch.inference_mode()
    def join(
        self,
        context: Context,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        plain: Context | None = None,
        weights: Sequence[float] = (),
        spellers: Sequence[Speller | None] = (),
        candidates: Sequence[int] = (),
    ) -> list[SequenceStart]:
        """Reads B prompts (token ids) behind their rows of `context`, whose cache holds K and V of every layer, (B, H, S, d).

        Whatever it raises, none of them has joined.
        `plain` is a second context of the same rows whose next-token scores are mixed in: w * context + (1 - w) * plain.
        `spellers` choose among the tokens of those that have one. A greedy prompt has up to so many `candidates`: sequences
        that begin with other tokens (beginnings.py), each with the log-probabilities of its tokens kept.
        """
        reads = [(context, prefill(self._backbone, context, prompts))]
        if plain is not None:
            reads.append((plain, prefill(self._backbone, plain, prompts)))
        joined: list[SequenceStart] = []
        try:
            for row, one in enumerate(sampling):
                weight = weights[row] if plain is not None else 1.0
                most = candidates[row] if candidates else 1
                joined += self._start(row, reads, one, weight, spellers[row] if spellers else None, most)
        except BaseException:
            for begun in joined:
                self.leave(begun.row)
            raise
        return joined

    def _start(
        self,
        row: int,
        reads: list[tuple[Context, PrefillResult]],
        sampling: Sampling,
        weight: float,
        speller: Speller | None,
        most: int,
    ) -> list[SequenceStart]:
        logits = _mixed([read.logits[row] for _, read in reads], weight)
        firsts = first_tokens(logits, speller, most) if most > 1 and sampling.temperature <= 0 else []
        joined: list[SequenceStart] = []
        try:
            for first in firsts if len(firsts) > 1 else [None]:
                started = _Sequence([], 0, sampling, weight, _generator(sampling), speller)
                number, self._next_row = self._next_row, self._next_row + 1
                self._running[number] = started
                joined.append(SequenceStart(number, 0, reads[0][1].attention[row], row))
                for context, read in reads:
                    started.slots.append(self._cache.take(context.cache, row, read.seen[row], int(read.last[row]) + 1))
                if first is None:
                    started.token = _choose(logits, started)
                else:
                    started.token, started.written, started.nats = first[0], [first[0]], [first[1]]
                joined[-1] = joined[-1]._replace(token=started.token)
        except BaseException:
            for begun in joined:
                self.leave(begun.row)
            raise
        return joined

    @torch.inference_mode()
    def step(self) -> dict[int, int]:
        """The next token of every running sequence, by its number."""
        if not self._running:
            return {}
        if moved := self._cache.compact():
            for one in self._running.values():
                one.slots = [moved.get(slot, slot) for slot in one.slots]
        tokens = torch.zeros(len(self._cache), dtype=torch.long)
        for one in self._running.values():
            tokens[one.slots] = one.token
        positions, attend = self._cache.open_column()
        ids = tokens.to(self._backbone.device)[:, None]
        # KVSlots speaks the part of transformers' cache interface that a forward pass uses
        hidden = self._backbone.forward(ids, positions, attend, cast(Any, self._cache))
        logits = self._backbone.logits(hidden[:, -1])  # (slots, V)
        greedy = logits.argmax(dim=-1).tolist()
        for one in self._running.values():
            if len(one.slots) == 1 and one.generator is None and one.speller is None and not one.nats:
                one.token = greedy[one.slots[0]]
                continue
            mixed = _mixed([logits[slot] for slot in one.slots], one.weight)
            one.token = _choose(mixed, one)
            if one.nats:
                one.nats.append(float(mixed.float().log_softmax(dim=-1)[one.token]))
        return {number: one.token for number, one in self._running.items()}

    def nats(self, row: int) -> list[float]:
        """The log-probabilities of a candidate's tokens so far."""
        return self._running[row].nats

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Ends a sequence, whether it is done or not wanted any more."""
        for slot in self._running.pop(row).slots:
            self._cache.free(slot)


def _generator(sampling: Sampling) -> torch.Generator | None:
    """None for greedy; a generator of the sequence's own, so that a seed gives the same answer beside any neighbours."""
    if sampling.temperature <= 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def _mixed(logits: Sequence[Tensor], weight: float) -> Tensor:
    if len(logits) == 1:
        return logits[0]
    return memory_aware(logits[0], logits[1], weight)


def _choose(logits: Tensor, sequence: _Sequence) -> int:
    """The next token from logits (V,), one that its speller lets pass where it has one."""
    speller, drawn_by = sequence.speller, sequence.generator
    if drawn_by is None:
        token = speller.best(sequence.written, logits) if speller else int(logits.argmax())
    elif speller and (allowed := speller.allowed(sequence.written, logits)) is not None:
        token = allowed[_drawn(logits[allowed], drawn_by, sequence.sampling)]
    else:
        token = _drawn(logits, drawn_by, sequence.sampling)
    if speller:
        sequence.written.append(token)
    return token


def _drawn(logits: Tensor, generator: torch.Generator, sampling: Sampling) -> int:
    """A draw from the nucleus (Holtzman et al. 2020) of logits (V,)."""
    probabilities = (logits.float().cpu() / sampling.temperature).softmax(dim=-1)
    ordered, ids = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # the first token always stays
    kept = ordered.masked_fill(before >= max(sampling.top_p, 1e-9), 0.0)
    return int(ids[torch.multinomial(kept, 1, generator=generator)])
