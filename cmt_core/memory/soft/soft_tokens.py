"""Θ (`soft_tokens`): m vectors a document, by cross-attention of m queries over the frozen LLM's hidden states.

The queries are learned, or started from the document's salient tokens: those that surprise the LLM most, in reading order. The
hidden states are those of a middle layer: the last ones know the next token and little of their own (docs/log.md).
Source: the compressor of CMT (arXiv 2412.07393, section 3), "soft tokens by cross-attention"; m, widths and blocks are not
public and are ours to choose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmt_core.llm.backbone import Backbone
from cmt_core.memory.soft.cross_attention import CrossBlock, hidden_bias

__all__ = ["SoftTokens", "salient_tokens", "surprisal"]


class SoftTokens(nn.Module):
    """Compresses hidden states (B, T, D) to m vectors (B, m, D) of unit RMS; started `salient`, it begins at those tokens."""

    def __init__(self, width: int, vectors: int, blocks: int, start: str) -> None:
        super().__init__()
        self.start = start
        salient = start == "salient"
        self.queries = nn.Parameter(
            torch.zeros(vectors, width) if salient else torch.randn(vectors, width) * width**-0.5
        )
        self.blocks = nn.ModuleList(CrossBlock(width, "keep" if salient else "random") for _ in range(blocks))
        self.out_norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, hidden: Tensor, mask: Tensor, salience: Tensor | None = None) -> Tensor:
        """Memory (B, m, D) of hidden (B, T, D) with mask (B, T); salience (B, T) is needed by the start `salient`."""
        hidden = hidden.float()
        queries = self.queries.expand(len(hidden), -1, -1)
        if self.start == "salient":
            assert salience is not None, "the start `salient` needs every token's salience"
            queries = queries + self._salient(hidden, mask, salience)
        for block in self.blocks:
            queries, _ = block(queries, hidden, hidden_bias(mask))
        memory: Tensor = self.out_norm(queries)
        return memory

    def _salient(self, hidden: Tensor, mask: Tensor, salience: Tensor) -> Tensor:
        """The hidden states (B, m, D) of the most salient tokens; a document of fewer than m gives them again from its first."""
        m = len(self.queries)
        index, found = salient_tokens(salience, mask, m)
        again = torch.arange(m, device=index.device) % found.sum(dim=1, keepdim=True)  # (B, m)
        index = index.gather(1, again)
        picked = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        return F.rms_norm(picked, picked.shape[-1:], eps=1e-6)


def salient_tokens(salience: Tensor, mask: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Places (B, min(m, T)) of the most salient tokens in reading order, and which of them exist (padding comes last)."""
    T = mask.shape[1]
    best = salience.masked_fill(~mask.bool(), float("-inf")).topk(min(m, T), dim=1)
    places = best.indices.masked_fill(best.values == float("-inf"), T).sort(dim=1).values
    return places.clamp(max=T - 1), places < T


@torch.no_grad()
def surprisal(backbone: Backbone, ids: Tensor, hidden: Tensor) -> Tensor:
    """Nats (B, T) by which each token surprises the LLM after those before it; 0 for the first.

    ids (B, T); hidden (B, T, D) of the same pass. One document's logits are held at a time.
    """
    nats = torch.zeros(ids.shape, device=ids.device, dtype=torch.float32)
    for row in range(len(ids)):
        nats[row, 1:] = F.cross_entropy(backbone.logits(hidden[row, :-1]).float(), ids[row, 1:], reduction="none")
    return nats
