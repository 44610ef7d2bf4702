"""Self-matching: unit vectors of questions and of documents' memories whose cosine says how well they match.

Both start as one whitening of hidden states of the same layer, since those of different texts are nearly parallel. Training
pulls a question to its own document's memory (training/objective.py holds both losses); `single_context` weighs documents by
the same cosine. Source: self-matching of CMT (arXiv 2412.07393, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Matching"]

_SHRINKAGE = 0.1  # of the mean variance: a few hundred texts don't know the small ones


class Matching(nn.Module):
    """Maps a question's hidden state (D) and a memory (m, D) to unit vectors of `size` numbers, W (x - centre) at first."""

    def __init__(self, width: int, size: int = 128) -> None:
        super().__init__()
        self.question_norm = nn.RMSNorm(width, eps=1e-6)
        self.question, self.document = nn.Linear(width, size), nn.Linear(width, size)

    def questions(self, hidden: Tensor) -> Tensor:
        """Unit vectors (..., size) of hidden states (..., D)."""
        return F.normalize(self.question(self.question_norm(hidden.float())), dim=-1)

    def documents(self, memory: Tensor) -> Tensor:
        """Unit vectors (..., size) of memories (..., m, D): of the mean over their vectors."""
        return F.normalize(self.document(memory.float().mean(dim=-2)), dim=-1)

    @torch.no_grad()
    def start_from(self, questions: Tensor, memories: Tensor) -> None:
        """Starts at a whitening of questions' hidden states (N, D) and memories (M, m, D), each about its own mean.

        Source: whitening of sentence vectors (Su et al., arXiv 2103.15316).
        """
        asked, kept = self.question_norm(questions.float()), memories.float().mean(dim=-2)
        parts = [asked - asked.mean(dim=0), kept - kept.mean(dim=0)]
        covariance = torch.stack([part.T @ part / len(part) for part in parts]).mean(dim=0).double()
        values, vectors = torch.linalg.eigh(covariance)
        size = min(len(self.question.weight), len(values))
        kept_values = values[-size:].clamp_min(0) + _SHRINKAGE * float(values.mean())
        whitening = (vectors[:, -size:] / kept_values.sqrt()).T.float()  # (size, D)
        for linear, centre in ((self.question, asked.mean(dim=0)), (self.document, kept.mean(dim=0))):
            linear.weight.zero_()
            linear.weight[:size] = whitening
            linear.bias.copy_(-linear.weight @ centre)

    def cosines(self, question: Tensor, memories: Tensor) -> Tensor:
        """(B, k) of questions' hidden states (B, D) and memories (B, k, m, D)."""
        return torch.einsum("be,bke->bk", self.questions(question), self.documents(memories))
