"""ψ (`single_context`): the k documents' memories become one context of c vectors, by the question's cross-attention.

c fixed queries, shifted by the question, attend to all k * m vectors; a document that matches the question better gets more
of the attention. Documents that were not found are left out. Source: aggregation and top-k aggregation of CMT
(arXiv 2412.07393, section 3); soft attention over a bank as in MAC (arXiv 2403.04317).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_core.cross_attention import CrossBlock, hidden_bias

__all__ = ["SingleContext"]


class SingleContext(nn.Module):
    """Aggregates memories (B, k, m, D) to (B, c, D) for questions (B, D)."""

    def __init__(self, width: int, vectors: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(vectors, width) * width**-0.5)
        self.question_norm = nn.RMSNorm(width, eps=1e-6)
        self.question = nn.Linear(width, width, bias=False)
        self.block = CrossBlock(width)
        self.out_norm = nn.RMSNorm(width, eps=1e-6)
        self.match_scale = nn.Parameter(torch.ones(()))

    def forward(
        self, question: Tensor, memories: Tensor, present: Tensor, match: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The context (B, c, D), and each document's share (B, k) of its attention (sums to 1).

        question (B, D) hidden states; memories (B, k, m, D); present (B, k) is false where there is no document, at least one
        is true; match (B, k) cosines of question and documents, where self-matching is trained.
        """
        B, k, m, _ = memories.shape
        bias = hidden_bias(present)
        if match is not None:
            bias = bias + self.match_scale * match
        queries = self.queries + self.question(self.question_norm(question.float()))[:, None]
        context, attention = self.block(queries, memories.flatten(1, 2).float(), bias.repeat_interleave(m, dim=1))
        return self.out_norm(context), attention.view(B, -1, k, m).sum(dim=-1).mean(dim=1)
