"""The two training stages of `kv_code`: a prefix that makes the frozen LLM read text, then the code that replaces the text.

Each stage is a module with trained parameters and `loss(batch)`; the loop knows nothing else about it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_core.aggregation import Select, rank_prior
from cmt_core.alignment import Context, place, place_chosen
from cmt_core.backbone import Backbone
from cmt_core.compressor import KVCode
from cmt_core.objective import answer_loss, distance_of_hidden, divergence, evidence_loss
from cmt_core.quantiser import Quantiser
from cmt_core.training.batches import IGNORED, Batch, QuestionRows, attend

__all__ = ["CodeStage", "PrefixStage", "answer_questions"]

_HIDDEN_WEIGHT = 0.5
_SELECT_LR = 0.05  # a few hundred mixing logits that start at zero


def answer_questions(backbone: Backbone, context: Context, questions: QuestionRows) -> tuple[Tensor, Tensor]:
    """Hidden states of all question tokens (R, Q, D) behind their rows of `context`, and logits (N, V) where a target is set."""
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
        context = place(backbone, prefix, exact[:, None], batch.mask[:, None], self.window_tokens)
        _, logits = answer_questions(backbone, context, batch.questions)
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
        select: Select | None = None,
    ) -> None:
        """`reading_prefix` (p, X) is where the trained one starts, the encoding prefix when None; `select` is ψ, if any."""
        super().__init__()
        self._frozen = (backbone, quantiser)
        self.window_tokens = window_tokens
        self.code = code
        self.select = select
        self.encoding_prefix = nn.Parameter(encoding_prefix.clone().float(), requires_grad=False)  # (p, X)
        start = encoding_prefix if reading_prefix is None else reading_prefix
        self.reading_prefix = nn.Parameter(start.clone().float())

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Answer loss + KL to the teacher (+ distance of hidden states when a context is one document)."""
        backbone, _ = self._frozen
        exact, teacher_hidden, teacher_logits = self._teach(batch)
        context, evidence = self._context(self.restore(exact), batch)
        hidden, logits = answer_questions(backbone, context, batch.questions)
        k = batch.context.shape[1]
        answer = answer_loss(logits, _targets(batch))
        kl = divergence(logits, teacher_logits)
        loss = answer + kl
        figures = {f"answer_k{k}": answer.item(), f"kl_k{k}": kl.item()}
        if k == 1 or evidence is not None:  # elsewhere the teacher's questions stand at other positions
            asked = batch.questions.segment >= 0
            loss = loss + _HIDDEN_WEIGHT * distance_of_hidden(hidden[asked], teacher_hidden[asked])
        if evidence is not None:
            loss, figures = loss + evidence, figures | {"evidence": evidence.item()}
        return loss, figures

    def restore(self, exact: Tensor) -> Tensor:
        """Rows x (..., X) after coding, rounding and decoding."""
        _, quantiser = self._frozen
        return self.code.decode(quantiser.round(self.code.encode(exact)), exact.dtype)

    def parameter_groups(self, lr: float, code_lr: float) -> list[dict[str, object]]:
        """The prefix learns fast; the code gently, since a large step destroys its PCA start."""
        groups: list[dict[str, object]] = [
            {"params": [self.reading_prefix], "lr": lr, "weight_decay": 0.0},
            {"params": list(self.code.parameters()), "lr": code_lr, "weight_decay": 0.0},
        ]
        if self.select is not None:
            groups.append({"params": list(self.select.parameters()), "lr": _SELECT_LR, "weight_decay": 0.0})
        return groups

    @torch.no_grad()
    def _teach(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        backbone, _ = self._frozen
        prefix = self.encoding_prefix.to(backbone.dtype)
        exact = backbone.read(batch.ids, batch.mask, prefix)
        context = place(backbone, prefix, exact[:, None], batch.mask[:, None], self.window_tokens)
        hidden, logits = answer_questions(backbone, context, batch.questions)
        return exact, hidden, logits

    def _context(self, restored: Tensor, batch: Batch) -> tuple[Context, Tensor | None]:
        """What the student reads, and ψ's loss where there is a ψ."""
        backbone, _ = self._frozen
        reading = self.reading_prefix.to(backbone.dtype)
        mask = batch.mask[batch.context]  # (R, k, T)
        if self.select is None:
            return place(backbone, reading, restored[batch.context], mask, self.window_tokens), None
        found = self._find(self.select, restored, batch)  # (N, k, T)
        with torch.no_grad():
            attention = torch.zeros_like(mask, dtype=found.dtype)
            rows = batch.questions.asked[:, 0, None, None].expand_as(found)
            attention.scatter_reduce_(0, rows, found, "amax")  # a row's questions share a context
            chosen = self.select.choose(attention, rank_prior(mask), mask)
            T = mask.shape[2]
            vectors = batch.context.gather(1, chosen.index // T) * T + chosen.index % T
        own = batch.context[batch.questions.asked[:, 0]] == batch.questions.asked[:, :1]  # (N, k)
        return place_chosen(backbone, reading, restored.flatten(0, 1)[vectors], chosen), evidence_loss(
            found[own], batch.questions.spans
        )

    def _find(self, select: Select, restored: Tensor, batch: Batch) -> Tensor:
        """ψ's attention (N, k, T) of the questions with known evidence over the documents of their rows."""
        backbone, _ = self._frozen
        asked = batch.questions.asked
        with torch.no_grad():
            nothing = restored.new_zeros(len(restored), 0, 0, restored.shape[-1])
            mask = batch.mask.new_zeros(len(restored), 0, 0)
            alone = place(backbone, self.reading_prefix.to(backbone.dtype), nothing, mask, self.window_tokens)
            with backbone.capture_queries() as captured:
                answer_questions(backbone, alone, batch.questions)
            queries = [layer[asked[:, 0], asked[:, 1]] for layer in captured]
            keys = select.keys(restored.detach())[batch.context[asked[:, 0]]]
        return select.attention(queries, keys, batch.mask[batch.context][asked[:, 0]])


def _targets(batch: Batch) -> Tensor:
    targets = batch.questions.targets
    return targets[targets != IGNORED]
