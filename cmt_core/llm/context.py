"""A placed context of the frozen LLM, and reading rows of tokens behind it.

Rows are padded on the right; every row counts its own positions, so what is read of it does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_core.llm.backbone import Backbone
from cmt_core.llm.placed_cache import PlacedCache

__all__ = ["Context", "read_rows"]

_BUCKET_TOKENS = 8  # rows are padded to whole buckets: every new shape costs the CPU kernels a re-tuning


@dataclass(slots=True)
class Context:
    """A cache of S columns for B rows, which of them exist (B, S), and the position of each row's next token (B,)."""

    cache: PlacedCache
    seen: Tensor
    next_position: Tensor


def read_rows(backbone: Backbone, context: Context, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Last hidden states (B, Q, D) of rows of token ids behind those of `context`, their lengths (B,), and which columns of the
    cache, extended by the padded rows, then exist (B, S + Q)."""
    device = backbone.device
    lengths = torch.tensor([len(row) for row in rows], device=device)  # (B,)
    B, Q = len(rows), -(-int(lengths.max()) // _BUCKET_TOKENS) * _BUCKET_TOKENS
    ids = torch.zeros(B, Q, dtype=torch.long, device=device)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    steps = torch.arange(Q, device=device)
    causal = torch.ones(Q, Q, dtype=torch.bool, device=device).tril()
    seen = torch.cat([context.seen, steps[None, :] < lengths[:, None]], dim=1)
    attend = torch.cat([context.seen[:, None].expand(B, Q, -1), causal.expand(B, Q, Q)], dim=-1)[:, None]
    hidden = backbone.forward(ids, context.next_position[:, None] + steps, attend, context.cache)
    return hidden, lengths, seen
