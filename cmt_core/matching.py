"""Self-matching: unit vectors of questions and of documents' memories whose cosine says how well they match.

Training pulls a question to its own document's memory (objective.py holds both losses); `single_context` weighs documents by
the same cosine. Source: self-matching of CMT (arXiv 2412.07393, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Matching"]


class Matching(nn.Module):
    """Maps a question's hidden state (D) and a memory (m, D) to unit vectors of `size` numbers."""

    def __init__(self, width: int, size: int = 128) -> None:
        super().__init__()
        self.question_norm = nn.RMSNorm(width, eps=1e-6)
        self.question = nn.Linear(width, size, bias=False)
        self.document = nn.Linear(width, size, bias=False)

    def questions(self, hidden: Tensor) -> Tensor:
        """Unit vectors (..., size) of hidden states (..., D)."""
        return F.normalize(self.question(self.question_norm(hidden.float())), dim=-1)

    def documents(self, memory: Tensor) -> Tensor:
        """Unit vectors (..., size) of memories (..., m, D): of the mean over their vectors."""
        return F.normalize(self.document(memory.float().mean(dim=-2)), dim=-1)

    def cosines(self, question: Tensor, memories: Tensor) -> Tensor:
        """(B, k) of questions' hidden states (B, D) and memories (B, k, m, D)."""
        return torch.einsum("be,bke->bk", self.questions(question), self.documents(memories))
