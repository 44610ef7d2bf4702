"""The training stage of the paper's parts: soft tokens, their aggregation, their alignment, and self-matching.

The loss is the answer's (memory-aware where the configuration says so), the distance to the teacher that reads the exact keys
and values, and self-matching. Source: CMT (arXiv 2412.07393) section 3; the teacher is ours, as in `kv_code`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_core.generation.mixed_logits import memory_aware
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.memory.soft.soft_memory import SoftMemory
from cmt_core.reading.aggregation import mean_to
from cmt_core.reading.alignment import place
from cmt_core.training.batches import IGNORED, Batch
from cmt_core.training.objective import answer_loss, contrastive_matching, cosine_matching, divergence
from cmt_core.training.stages import answer_questions, read_alone, targets_of, teach

__all__ = ["SoftStage", "question_of"]


class SoftStage(nn.Module):
    """Trains SoftMemory and the reading prefix; every row of its batches has one question, which conditions ψ."""

    def __init__(
        self, backbone: Backbone, soft: SoftMemory, encoding_prefix: Tensor, reading_prefix: Tensor | None = None
    ) -> None:
        """`reading_prefix` (p, X) is where the trained one starts, the encoding prefix when None."""
        super().__init__()
        self._frozen = [backbone]  # in a list: Φ is no part of this module's parameters
        self.soft, self.config = soft, soft.config
        self.encoding_prefix = nn.Parameter(encoding_prefix.clone().float(), requires_grad=False)  # (p, X)
        start = encoding_prefix if reading_prefix is None else reading_prefix
        self.reading_prefix = nn.Parameter(start.clone().float())

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Answer loss + KL to the teacher + the weighted matching loss."""
        backbone, weight = self._frozen[0], self.config.decoding_weight
        taught = teach(backbone, self.encoding_prefix, batch, self.config.window_tokens, self.soft.source_layer)
        memory = self.soft.compress(backbone, batch.ids, batch.mask, taught.source, taught.last)  # (R, m, D)
        question, plain = question_of(backbone, self.reading_prefix, batch, self.soft.source_layer)
        _, logits = answer_questions(backbone, self._context(memory, question, batch), batch.questions)
        k = batch.context.shape[1]
        mixed = logits if weight == 1 else memory_aware(logits, plain, weight)
        answer, kl = answer_loss(mixed, targets_of(batch)), divergence(logits, taught.logits)
        figures = {f"answer_k{k}": answer.item(), f"kl_k{k}": kl.item()}
        loss = answer + kl
        if self.soft.matching is not None:
            matching = self._matching(question, memory)
            loss, figures = loss + self.config.matching_weight * matching, figures | {"matching": matching.item()}
        return loss, figures

    def parameter_groups(self, lr: float, soft_lr: float, map_lr: float) -> list[dict[str, object]]:
        """The prefix, Θ and ψ, and (gently, since a large step destroys its fitted start) π, each with its rate."""
        maps = list(self.soft.alignment.parameters())
        others = [one for name, one in self.soft.named_parameters() if not name.startswith("alignment.")]
        return [
            {"params": [self.reading_prefix], "lr": lr, "weight_decay": 0.0},
            {"params": others, "lr": soft_lr, "weight_decay": 0.0},
            {"params": maps, "lr": map_lr, "weight_decay": 0.0},
        ]

    def _context(self, memory: Tensor, question: Tensor, batch: Batch) -> Context:
        """What the LLM reads of each row's documents."""
        backbone, prefix = self._frozen[0], self.reading_prefix.to(self._frozen[0].dtype)
        chosen = batch.context  # (R, k)
        if self.soft.context is None:
            rows = self.soft.align(backbone, memory)[chosen]  # (R, k, m, X)
        else:
            present = torch.ones_like(chosen, dtype=torch.bool)
            context, _ = self.soft.aggregate(question, memory[chosen], present)
            rows = self.soft.align(backbone, context)[:, None]  # (R, 1, c, X)
        return place(backbone, prefix, rows, chosen.new_ones(rows.shape[:3]), rows.shape[2])

    def _matching(self, question: Tensor, memory: Tensor) -> Tensor:
        assert self.soft.matching is not None
        questions, documents = self.soft.matching.questions(question), self.soft.matching.documents(memory)
        own = torch.arange(len(memory), device=memory.device)
        if self.config.matching == "infonce":
            return contrastive_matching(questions, documents, own)
        return cosine_matching(questions, documents, own, self.config.uniformity_weight)


def question_of(backbone: Backbone, prefix: Tensor, batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    """What ψ and self-matching know of each row's one question, (R, D), and the LLM's own logits (N, V) for its answer.

    As `question_states` in service: read behind prefix (p, X) without a document.
    """
    with backbone.capture_inputs([layer]) as captured:
        _, plain = read_alone(backbone, prefix, batch)
    ends = (
        (batch.questions.targets != IGNORED).int().argmax(dim=1)
    )  # the prompt's last token is the first with a target
    return mean_to(captured[0], ends), plain
