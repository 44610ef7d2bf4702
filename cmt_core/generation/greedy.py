"""Greedy generation behind a context of memories, for a batch of questions at once.

Prompts are padded on the right; every row counts its own positions, so a question's answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmt_core.generation.spelling import Speller
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context, read_rows

__all__ = ["GeneratedTokens", "PrefillResult", "generate", "prefill"]


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """New token ids without the stop token, why they end, and the prompt's attention over context columns (S,)."""

    ids: list[int]
    finish_reason: Literal["stop", "length"]
    attention: Tensor


@dataclass(slots=True)
class PrefillResult:
    """What reading B prompts leaves behind: logits of the next token (B, V), which columns of the cache exist (B, S + Q),
    the position of each prompt's last token (B,), and its attention over context columns (B, S)."""

    logits: Tensor
    seen: Tensor
    last: Tensor
    attention: Tensor


@torch.inference_mode()
def generate(
    backbone: Backbone,
    context: Context,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: set[int],
    spellers: Sequence[Speller | None] = (),
) -> list[GeneratedTokens]:
    """Continues each prompt (token ids) behind its row of `context` until a stop token or `max_new_tokens`.

    `spellers` choose among the tokens of those rows that have one.
    """
    read = prefill(backbone, context, prompts)
    answers = _continue(backbone, context, read, max_new_tokens, stop_ids, spellers)
    return [GeneratedTokens(ids, reason, read.attention[row]) for row, (ids, reason) in enumerate(answers)]


@torch.inference_mode()
def prefill(backbone: Backbone, context: Context, prompts: Sequence[Sequence[int]]) -> PrefillResult:
    """Reads each prompt (token ids) behind its row of `context`, whose cache is extended by the padded prompts."""
    with backbone.capture_queries() as queries:
        hidden, lengths, seen = read_rows(backbone, context, prompts)
    B, last = len(prompts), context.next_position + lengths - 1  # (B,) position of each prompt's last token
    final = torch.stack([layer[torch.arange(B), lengths - 1] for layer in queries])  # (L, B, heads * d)
    shares = _attention(backbone, context, final, last, seen)
    return PrefillResult(backbone.logits(hidden[torch.arange(B), lengths - 1]), seen, last, shares)


def _continue(
    backbone: Backbone,
    context: Context,
    read: PrefillResult,
    max_new_tokens: int,
    stop_ids: set[int],
    spellers: Sequence[Speller | None],
) -> list[tuple[list[int], Literal["stop", "length"]]]:
    B, seen = len(read.last), read.seen
    new: list[list[int]] = [[] for _ in range(B)]
    token = _best(read.logits, spellers, new, range(B))
    open_rows = set(range(B))
    for step in range(max_new_tokens):
        for row in list(open_rows):
            chosen = int(token[row])
            if chosen in stop_ids:
                open_rows.discard(row)
            else:
                new[row].append(chosen)
        if not open_rows or step + 1 == max_new_tokens:
            break
        seen = torch.cat([seen, seen.new_ones(B, 1)], dim=1)
        position = (read.last + 1 + step)[:, None]
        hidden = backbone.forward(token[:, None], position, seen[:, None, None], context.cache)
        token = _best(backbone.logits(hidden[:, -1]), spellers, new, open_rows)
    return [(ids, "length" if row in open_rows else "stop") for row, ids in enumerate(new)]


def _best(
    logits: Tensor, spellers: Sequence[Speller | None], new: Sequence[Sequence[int]], rows: Iterable[int]
) -> Tensor:
    """The next token (B,) behind what is `new` of each answer, of logits (B, V); of `rows` with a speller the one it chooses."""
    tokens = logits.argmax(dim=-1)
    for row in rows if spellers else ():
        if (speller := spellers[row]) is not None:
            tokens[row] = speller.best(new[row], logits[row])
    return tokens


def _attention(backbone: Backbone, context: Context, queries: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
    """What the prompts' last tokens look at: (B, S) attention over context columns, averaged over layers and heads."""
    S = context.seen.shape[1]
    total = torch.zeros(len(positions), S, device=positions.device, dtype=torch.float32)
    for layer, cached in enumerate(context.cache.layers):
        total += backbone.attention(layer, queries[layer], cached.keys, positions, seen)[:, :, :S].mean(dim=1)
    return total / len(context.cache.layers)
