"""π: places documents' keys and values behind the reading prefix as a cache of the frozen LLM.

The i-th document of a context stands at positions p + i * window + its own token's place, so that a question always follows
at p + k * window, however short the documents are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from cmt_core.backbone import Backbone

__all__ = ["Context", "place"]


@dataclass(slots=True)
class Context:
    """A cache of S columns for B rows, which of them exist (B, S), and the position of each row's next token (B,)."""

    cache: DynamicCache
    seen: Tensor
    next_position: Tensor


def place(backbone: Backbone, prefix: Tensor, documents: Tensor, mask: Tensor, window_tokens: int) -> Context:
    """Builds the context of prefix (p, X) and documents (B, k, T, X) with mask (B, k, T); k may be 0."""
    B, k, T, X = documents.shape
    p = prefix.shape[0]
    device = documents.device
    offsets = p + torch.arange(k, device=device)[:, None] * window_tokens + torch.arange(T, device=device)  # (k, T)
    positions = torch.cat([torch.arange(p, device=device), offsets.reshape(-1)]).expand(B, -1)  # (B, S)
    x = torch.cat([prefix.expand(B, p, X), documents.reshape(B, k * T, X)], dim=1)  # (B, S, X)
    seen = torch.cat([mask.new_ones(B, p), mask.reshape(B, k * T)], dim=1).bool()
    return Context(backbone.cache(x, positions), seen, torch.full((B,), p + k * window_tokens, device=device))
