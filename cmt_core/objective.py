"""What training minimises: the answer's log-loss, and distillation from the exact keys and values.

Source: CMT (arXiv 2412.07393) section 3 for the answer loss; distillation from the uncompressed context as in context
distillation (Cartridges, arXiv 2506.06266).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["answer_loss", "distance_of_hidden", "divergence", "evidence_loss"]


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
