"""Memory-aware decoding of a whole batch: at every token, logits with the memory are mixed with those without it.

The running batch (continuous.py) does the mixing; this drives it until all answers have ended.
Source: the memory-aware objective of CMT (arXiv 2412.07393), at inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmt_core.generation.continuous import ContinuousBatch
from cmt_core.generation.greedy import GeneratedTokens
from cmt_core.generation.query import GREEDY
from cmt_core.generation.spelling import Speller
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context

__all__ = ["generate_mixed"]


@torch.inference_mode()
def generate_mixed(
    backbone: Backbone,
    context: Context,
    plain: Context,
    prompts: Sequence[Sequence[int]],
    weight: float,
    max_new_tokens: int,
    stop_ids: set[int],
    spellers: Sequence[Speller | None] = (),
) -> list[GeneratedTokens]:
    """As `generate`, greedy over w * logits behind `context` + (1 - w) * logits behind `plain` (B rows each)."""
    engine = ContinuousBatch(backbone)
    joined = engine.join(context, prompts, [GREEDY] * len(prompts), plain, [weight] * len(prompts), spellers)
    written: dict[int, list[int]] = {one.row: [] for one in joined}
    stopped: set[int] = set()
    tokens = {one.row: one.token for one in joined}
    for step in range(max_new_tokens):
        for row, token in tokens.items():
            if token in stop_ids:
                stopped.add(row)
                engine.leave(row)
            else:
                written[row].append(token)
        tokens = engine.step() if step + 1 < max_new_tokens else {}
        if not tokens:
            break
    return [
        GeneratedTokens(written[one.row], "stop" if one.row in stopped else "length", one.attention) for one in joined
    ]
