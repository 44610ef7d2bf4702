"""A fitted code trained further: the frozen LLM on the exact keys and values of the same documents is its teacher.

Only the code learns. The head of the chat template is what it is, and answers stay the LLM's own: nothing rewards another one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.rounding import FittedRounding
from cmt_core.reading.aggregation import adjoining
from cmt_core.reading.alignment import place_chosen
from cmt_core.training.batches import Batch
from cmt_core.training.objective import answer_loss, distance_of_hidden, divergence
from cmt_core.training.stages import answer_questions, targets_of

__all__ = ["ChatStage"]

_HIDDEN_WEIGHT = 0.5


class ChatStage(nn.Module):
    """The code, taught behind `head` (p, X), which is the chat template's and stays as it is."""

    def __init__(self, backbone: Backbone, code: KVCode, rounding: FittedRounding, head: Tensor) -> None:
        super().__init__()
        self._frozen = (backbone, rounding, head.to(backbone.device, backbone.dtype))
        self.code = code

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """KL to the teacher on the answers' tokens, and the distance of all questions' hidden states.

        `answer` is the log-loss of the targets, which is reported and not trained on; `taught` is the teacher's own.
        """
        backbone, rounding, head = self._frozen
        with torch.no_grad():
            exact = backbone.read(batch.ids, batch.mask, head)
            teacher, taught = answer_questions(backbone, self._context(exact, batch), batch.questions)
        restored = self.code.decode(rounding.round(self.code.encode(exact), batch.mask.sum(dim=1)), exact.dtype)
        hidden, logits = answer_questions(backbone, self._context(restored, batch), batch.questions)
        asked, targets = batch.questions.segment >= 0, targets_of(batch)
        kl, distance = divergence(logits, taught), distance_of_hidden(hidden[asked], teacher[asked])
        k = batch.context.shape[1]
        figures = {
            f"answer_k{k}": answer_loss(logits.detach(), targets).item(),
            f"taught_k{k}": answer_loss(taught, targets).item(),
            f"kl_k{k}": kl.item(),
        }
        return kl + _HIDDEN_WEIGHT * distance, figures

    def parameter_groups(self, lr: float) -> list[dict[str, object]]:
        """One group; weight decay would pull the code away from its start."""
        return [{"params": list(self.code.parameters()), "lr": lr, "weight_decay": 0.0}]

    def _context(self, rows: Tensor, batch: Batch) -> Context:
        """Each row's documents of rows (R, T, X), one right behind the other."""
        backbone, _, head = self._frozen
        documents, mask = rows[batch.context], batch.mask[batch.context]  # (R, k, T, X), (R, k, T)
        return place_chosen(backbone, head, documents.flatten(1, 2), adjoining(mask))
