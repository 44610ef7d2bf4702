"""The two training stages of `kv_code`: a prefix that makes the frozen LLM read text, then the code that replaces the text.

Each stage is a module with trained parameters and `loss(batch)`; the loop knows nothing else about it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_core.alignment import place
from cmt_core.backbone import Backbone
from cmt_core.compressor import KVCode
from cmt_core.objective import answer_loss, distance_of_hidden, divergence
from cmt_core.quantiser import Quantiser
from cmt_core.training.batches import IGNORED, Batch, QuestionRows, attend

__all__ = ["CodeStage", "PrefixStage", "answer_questions"]

_HIDDEN_WEIGHT = 0.5


def answer_questions(
    backbone: Backbone, prefix: Tensor, documents: Tensor, mask: Tensor, questions: QuestionRows, window_tokens: int
) -> tuple[Tensor, Tensor]:
    """Hidden states of all question tokens (R, Q, D), and logits (N, V) where a target is set.

    prefix (p, X), documents (R, k, T, X), mask (R, k, T).
    """
    context = place(backbone, prefix, documents, mask, window_tokens)
    positions = context.next_position[:, None] + questions.place
    hidden = backbone.forward(questions.ids, positions, attend(context.seen, questions.segment), context.cache)
    return hidden, backbone.logits(hidden[questions.targets != IGNORED])


class PrefixStage(nn.Module):
    """Stage 1: p learned rows of keys and values before the text (prefix tuning, Li and Liang 2021)."""

    def __init__(self, backbone: Backbone, start: Tensor, window_tokens: int) -> None:
        super().__init__()
        self._frozen = [backbone]  # in a list: Φ is no part of this module's parameters
        self.window_tokens = window_tokens
        self.prefix = nn.Parameter(start.clone().float())  # (p, X)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Answer loss behind the exact keys and values of each row's own document."""
        backbone = self._frozen[0]
        prefix = self.prefix.to(backbone.dtype)
        exact = backbone.read(batch.ids, batch.mask, prefix)
        _, logits = answer_questions(
            backbone, prefix, exact[:, None], batch.mask[:, None], batch.questions, self.window_tokens
        )
        loss = answer_loss(logits, _targets(batch))
        return loss, {"answer": loss.item()}

    def parameter_groups(self, lr: float) -> list[dict[str, object]]:
        """One group; weight decay would pull the prefix away from its start."""
        return [{"params": [self.prefix], "lr": lr, "weight_decay": 0.0}]


class CodeStage(nn.Module):
    """Stage 2: the code and the reading prefix, taught by the same LLM on the exact keys and values."""

    def __init__(
        self,
        backbone: Backbone,
        code: KVCode,
        quantiser: Quantiser,
        encoding_prefix: Tensor,
        window_tokens: int,
        reading_prefix: Tensor | None = None,
    ) -> None:
        """`reading_prefix` (p, X) is where the trained one starts; the encoding prefix when None."""
        super().__init__()
        self._frozen = (backbone, quantiser)
        self.window_tokens = window_tokens
        self.code = code
        self.encoding_prefix = nn.Parameter(encoding_prefix.clone().float(), requires_grad=False)  # (p, X)
        start = encoding_prefix if reading_prefix is None else reading_prefix
        self.reading_prefix = nn.Parameter(start.clone().float())

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Answer loss + KL to the teacher (+ distance of hidden states when a context is one document)."""
        backbone, _ = self._frozen
        exact, teacher_hidden, teacher_logits = self._teach(batch)
        restored = self.restore(exact)
        k = batch.context.shape[1]
        documents, mask = restored[batch.context], batch.mask[batch.context]  # (R, k, T, X), (R, k, T)
        reading = self.reading_prefix.to(backbone.dtype)
        hidden, logits = answer_questions(backbone, reading, documents, mask, batch.questions, self.window_tokens)
        answer = answer_loss(logits, _targets(batch))
        kl = divergence(logits, teacher_logits)
        loss = answer + kl
        if k == 1:
            asked = batch.questions.segment >= 0
            loss = loss + _HIDDEN_WEIGHT * distance_of_hidden(hidden[asked], teacher_hidden[asked])
        return loss, {f"answer_k{k}": answer.item(), f"kl_k{k}": kl.item()}

    def restore(self, exact: Tensor) -> Tensor:
        """Rows x (..., X) after coding, rounding and decoding."""
        _, quantiser = self._frozen
        return self.code.decode(quantiser.round(self.code.encode(exact)), exact.dtype)

    def parameter_groups(self, lr: float, code_lr: float) -> list[dict[str, object]]:
        """The prefix learns fast; the code gently, since a large step destroys its PCA start."""
        return [
            {"params": [self.reading_prefix], "lr": lr, "weight_decay": 0.0},
            {"params": list(self.code.parameters()), "lr": code_lr, "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def _teach(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        backbone, _ = self._frozen
        prefix = self.encoding_prefix.to(backbone.dtype)
        exact = backbone.read(batch.ids, batch.mask, prefix)
        hidden, logits = answer_questions(
            backbone, prefix, exact[:, None], batch.mask[:, None], batch.questions, self.window_tokens
        )
        return exact, hidden, logits


def _targets(batch: Batch) -> Tensor:
    targets = batch.questions.targets
    return targets[targets != IGNORED]
