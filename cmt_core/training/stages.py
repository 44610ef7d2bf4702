"""The two training stages of `kv_code`: a prefix that makes the frozen LLM read text, then the code that replaces the text.

Each stage is a module with trained parameters and `loss(batch)`; the loop knows nothing else about it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmt_core.generation.mixed_logits import memory_aware
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.rounding import FittedRounding
from cmt_core.reading.aggregation import Select, rank_prior
from cmt_core.reading.alignment import place, place_chosen
from cmt_core.training.batches import IGNORED, Batch, QuestionRows, attend
from cmt_core.training.objective import answer_loss, distance_of_hidden, divergence, evidence_loss

__all__ = ["CodeStage", "PrefixStage", "Taught", "answer_questions", "read_alone", "targets_of", "teach"]

_HIDDEN_WEIGHT = 0.5
_SELECT_LR = 0.05  # a few hundred mixing logits that start at zero


def answer_questions(backbone: Backbone, context: Context, questions: QuestionRows) -> tuple[Tensor, Tensor]:
    """Hidden states of all question tokens (R, Q, D) behind their rows of `context`, and logits (N, V) where a target is set."""
    positions = context.next_position[:, None] + questions.place
    hidden = backbone.forward(questions.ids, positions, attend(context.seen, questions.segment), context.cache)
    return hidden, backbone.logits(hidden[questions.targets != IGNORED])


@dataclass(frozen=True, slots=True)
class Taught:
    """What the frozen LLM says with the exact keys and values of each row's own document.

    exact (R, T, X), source and last (R, T, D) are the document's rows, its hidden states at the asked depth and its last ones;
    hidden (R, Q, D) and logits (N, V) are the questions'.
    """

    exact: Tensor
    source: Tensor
    last: Tensor
    hidden: Tensor
    logits: Tensor


@torch.no_grad()
def teach(
    backbone: Backbone, prefix: Tensor, batch: Batch, window_tokens: int, source_layer: int | None = None
) -> Taught:
    """Reads the batch's documents behind prefix (p, X), and their questions behind the exact keys and values.

    `source` are the hidden states that `source_layer` gets, the last ones when it is None.
    """
    prefix = prefix.to(backbone.dtype)
    layer = backbone.shape.layers if source_layer is None else source_layer
    exact, source, last = backbone.read_at_depth(batch.ids, batch.mask, prefix, layer)
    context = place(backbone, prefix, exact[:, None], batch.mask[:, None], window_tokens)
    hidden, logits = answer_questions(backbone, context, batch.questions)
    return Taught(exact, source, last, hidden, logits)


@torch.no_grad()
def read_alone(backbone: Backbone, prefix: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """As `answer_questions`, behind prefix (p, X) without any document: the LLM's own answer, and what it makes of a question."""
    X = backbone.shape.width
    nothing = torch.zeros(len(batch.ids), 0, 0, X, dtype=backbone.dtype, device=backbone.device)
    alone = place(backbone, prefix.to(backbone.dtype), nothing, batch.mask.new_zeros(len(batch.ids), 0, 0), 0)
    return answer_questions(backbone, alone, batch.questions)


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
        loss = answer_loss(logits, targets_of(batch))
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
        rounding: FittedRounding,
        encoding_prefix: Tensor,
        window_tokens: int,
        reading_prefix: Tensor | None = None,
        select: Select | None = None,
        memory_weight: float = 1.0,
    ) -> None:
        """`reading_prefix` (p, X) is where the trained one starts, the encoding prefix when None; `select` is ψ, if any.

        `memory_weight` w mixes the LLM's own logits into those that the answer loss sees (objective.memory_aware).
        """
        super().__init__()
        self._frozen = (backbone, rounding)
        self.window_tokens = window_tokens
        self.code = code
        self.select = select
        self.memory_weight = memory_weight
        self.encoding_prefix = nn.Parameter(encoding_prefix.clone().float(), requires_grad=False)  # (p, X)
        start = encoding_prefix if reading_prefix is None else reading_prefix
        self.reading_prefix = nn.Parameter(start.clone().float())

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Answer loss + KL to the teacher (+ distance of hidden states when a context is one document)."""
        backbone, _ = self._frozen
        taught = teach(backbone, self.encoding_prefix, batch, self.window_tokens)
        context, evidence = self._context(self.restore(taught.exact, batch.mask), batch)
        hidden, logits = answer_questions(backbone, context, batch.questions)
        k = batch.context.shape[1]
        answer = answer_loss(self._aware(logits, batch), targets_of(batch))
        kl = divergence(logits, taught.logits)
        loss = answer + kl
        figures = {f"answer_k{k}": answer.item(), f"kl_k{k}": kl.item()}
        if k == 1 or evidence is not None:  # elsewhere the teacher's questions stand at other positions
            asked = batch.questions.segment >= 0
            loss = loss + _HIDDEN_WEIGHT * distance_of_hidden(hidden[asked], taught.hidden[asked])
        if evidence is not None:
            loss, figures = loss + evidence, figures | {"evidence": evidence.item()}
        return loss, figures

    def restore(self, exact: Tensor, mask: Tensor) -> Tensor:
        """Rows x (B, T, X) with mask (B, T) after coding, rounding and decoding."""
        _, rounding = self._frozen
        return self.code.decode(rounding.round(self.code.encode(exact), mask.sum(dim=1)), exact.dtype)

    def parameter_groups(self, lr: float, code_lr: float) -> list[dict[str, object]]:
        """The prefix learns fast; the code gently, since a large step destroys its PCA start."""
        groups: list[dict[str, object]] = [
            {"params": [self.reading_prefix], "lr": lr, "weight_decay": 0.0},
            {"params": list(self.code.parameters()), "lr": code_lr, "weight_decay": 0.0},
        ]
        if self.select is not None:
            groups.append({"params": list(self.select.parameters()), "lr": _SELECT_LR, "weight_decay": 0.0})
        return groups

    def _aware(self, logits: Tensor, batch: Batch) -> Tensor:
        if self.memory_weight == 1:
            return logits
        _, plain = read_alone(self._frozen[0], self.reading_prefix, batch)
        return memory_aware(logits, plain, self.memory_weight)

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
        context = place_chosen(backbone, reading, restored.flatten(0, 1)[vectors], chosen)
        return context, evidence_loss(found[own], batch.questions.spans) if len(own) else None

    def _find(self, select: Select, restored: Tensor, batch: Batch) -> Tensor:
        """ψ's attention (N, k, T) of the questions with known evidence over the documents of their rows."""
        backbone, _ = self._frozen
        asked = batch.questions.asked
        with torch.no_grad():
            with backbone.capture_queries() as captured:
                read_alone(backbone, self.reading_prefix, batch)
            queries = [layer[asked[:, 0], asked[:, 1]] for layer in captured]
            keys = select.keys(restored.detach())[batch.context[asked[:, 0]]]
        return select.attention(queries, keys, batch.mask[batch.context][asked[:, 0]])


def targets_of(batch: Batch) -> Tensor:
    """The token ids (N,) that the questions' answers should be, in the order of `answer_questions`' logits."""
    targets = batch.questions.targets
    return targets[targets != IGNORED]
