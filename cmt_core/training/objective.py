"""What training minimises: the answer's log-loss, distillation from the exact keys and values, and self-matching.

Source: CMT (arXiv 2412.07393) section 3 for the answer loss and self-matching (its memory-aware objective stands in
generation/mixed_logits.py); uniformity of Wang and Isola (2020); InfoNCE of van den Oord et al. (2018); distillation from the
uncompressed context as in context distillation (Cartridges, arXiv 2506.06266).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "answer_loss",
    "contrastive_matching",
    "cosine_matching",
    "distance_of_hidden",
    "divergence",
    "evidence_loss",
]


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean log-loss in nats per answer token; logits (N, V), targets (N,)."""
    return F.cross_entropy(logits.float(), targets)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL(teacher || student) in nats per answer token; logits (N, V)."""
    return F.kl_div(
        student.float().log_softmax(-1), teacher.float().log_softmax(-1), log_target=True, reduction="batchmean"
    )


def distance_of_hidden(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of hidden states (N, D), relative to the teacher's squared length."""
    return torch.mean((student.float() - teacher.float()) ** 2) / torch.mean(teacher.float() ** 2)


def evidence_loss(attention: Tensor, spans: Tensor) -> Tensor:
    """Mean log-loss in nats of finding the answer: attention (N, T) sums to 1, spans (N, T) is true where it stands."""
    return -((attention * spans).sum(dim=-1) + 1e-6).log().mean()


def cosine_matching(questions: Tensor, documents: Tensor, own: Tensor, uniformity: float, t: float = 2.0) -> Tensor:
    """-cos(q, d+) + l * log mean exp(-t * ||d_i - d_j||^2): pulls a question to its document, and documents apart.

    questions (N, e) and documents (R, e) unit vectors; own (N,) is each question's document; l is `uniformity`.
    """
    pull = -(questions * documents[own]).sum(dim=-1).mean()
    if len(documents) < 2:
        return pull
    i, j = torch.triu_indices(len(documents), len(documents), offset=1, device=documents.device)
    squared = (documents[i] - documents[j]).square().sum(dim=-1)
    return pull + uniformity * (-t * squared).exp().mean().log()


def contrastive_matching(questions: Tensor, documents: Tensor, own: Tensor, temperature: float = 0.05) -> Tensor:
    """InfoNCE in nats: the question's document (own, (N,)) against all of the batch's, (N, e) and (R, e) unit vectors."""
    return F.cross_entropy(questions @ documents.T / temperature, own)
