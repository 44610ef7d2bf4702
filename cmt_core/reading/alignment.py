"""π: places memory vectors, expanded to keys and values, behind the reading prefix as a cache of the frozen LLM.

Where they stand is ψ's choice (aggregation.py): with `stack`, the i-th document of a context stands at positions
p + i * window + its own token's place, so that a question always follows at p + k * window, however short the documents are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.reading.aggregation import Selection, stack

__all__ = ["place", "place_chosen", "place_rows"]


def place(backbone: Backbone, prefix: Tensor, documents: Tensor, mask: Tensor, window_tokens: int) -> Context:
    """Builds the context of prefix (p, X) and all of documents (B, k, T, X) with mask (B, k, T); k may be 0."""
    B, k, T, X = documents.shape
    chosen = stack(mask, window_tokens)
    context = place_chosen(backbone, prefix, documents.reshape(B, k * T, X), chosen)
    context.next_position = torch.full((B,), len(prefix) + k * window_tokens, device=documents.device)
    return context


def place_chosen(backbone: Backbone, prefix: Tensor, rows: Tensor, chosen: Selection) -> Context:
    """Builds the context of prefix (p, X) and the chosen vectors' rows (B, S, X), in the order of `chosen`."""
    x = torch.cat([prefix.expand(rows.shape[0], -1, -1), rows], dim=1)
    return place_rows(backbone, x, len(prefix), chosen)


def place_rows(backbone: Backbone, x: Tensor, p: int, chosen: Selection) -> Context:
    """Builds the context of rows x (B, p + S, X): a prefix of p, then the chosen vectors in the order of `chosen`."""
    B = x.shape[0]
    first = torch.arange(p, device=x.device).expand(B, p)
    seen = torch.cat([chosen.seen.new_ones(B, p), chosen.seen], dim=1)
    cache = backbone.cache(x, torch.cat([first, p + chosen.positions], dim=1))
    return Context(cache, seen, p + chosen.length)
