"""ψ (`single_context`): the k documents' memories become one context of c vectors, by the question's cross-attention.

c fixed queries, shifted by the question, attend to all k * m vectors; a document that matches the question better gets more
of the attention. Documents that were not found are left out. Query i starts at the documents' i-th vectors (where c = m), so
that the context begins as the best document's own memory: a mean over different tokens says nothing of any. Source: aggregation
and top-k aggregation of CMT (arXiv 2412.07393, section 3); soft attention over a bank as in MAC (arXiv 2403.04317).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmt_core.memory.soft.cross_attention import CrossBlock, hidden_bias

__all__ = ["SingleContext"]

_PLACE_BIAS = 8.0  # of 64 vectors the query's own gets 98% of the attention at first
_MATCH_SCALE = 20.0  # InfoNCE's temperature of 0.05: the documents' shares are then the ones that it trains


class SingleContext(nn.Module):
    """Aggregates memories (B, k, m, D) to (B, c, D) for questions (B, D)."""

    def __init__(self, width: int, vectors: int, memory_vectors: int) -> None:
        super().__init__()
        places = torch.arange(vectors) * memory_vectors // vectors
        self.place_bias = nn.Parameter(_PLACE_BIAS * F.one_hot(places, memory_vectors).float())  # (c, m)
        self.queries = nn.Parameter(torch.randn(vectors, width) * width**-0.5)
        self.question_norm = nn.RMSNorm(width, eps=1e-6)
        self.question = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.question.weight)
        self.block = CrossBlock(width, "copy")
        self.out_norm = nn.RMSNorm(width, eps=1e-6)
        self.match_scale = nn.Parameter(torch.full((), _MATCH_SCALE))

    def forward(
        self, question: Tensor, memories: Tensor, present: Tensor, match: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The context (B, c, D), and each document's share (B, k) of its attention (sums to 1).

        question (B, D) hidden states; memories (B, k, m, D); present (B, k) is false where there is no document, at least one
        is true; match (B, k) cosines of question and documents, where self-matching is trained.
        """
        B, k, m, _ = memories.shape
        bias = hidden_bias(present)  # (B, 1, k)
        if match is not None:
            bias = bias + self.match_scale * match[:, None]
        bias = bias.repeat_interleave(m, dim=2) + self.place_bias.repeat(1, k)  # (B, c, k * m)
        queries = self.queries + self.question(self.question_norm(question.float()))[:, None]
        context, attention = self.block(queries, memories.flatten(1, 2).float(), bias)
        return self.out_norm(context), attention.view(B, -1, k, m).sum(dim=-1).mean(dim=1)
