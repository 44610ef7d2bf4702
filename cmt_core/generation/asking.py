"""What a batch of questions is asked with, and how likely the LLM finds an answer that it is shown instead of writing one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_core.generation.mixed_logits import memory_aware
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context, read_rows
from cmt_core.reading.batch import Reading
from cmt_core.reading.prompting import Prompting

__all__ = ["QuestionBatch", "log_loss"]


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """B questions: what each reads, and its prompt (token ids). It is good for one answer: writing extends its contexts.

    `closed` prompts are whole by themselves, in the LLM's own chat template; `texts` are what is read as text. With `plain`,
    contexts without a memory, next-token logits are weight * those behind the memory + (1 - weight) * those behind `plain`.
    """

    reading: Reading
    prompts: list[list[int]]
    closed: bool = False
    texts: Sequence[Sequence[str]] | None = None
    plain: Context | None = None
    weight: float = 1.0


@torch.inference_mode()
def log_loss(backbone: Backbone, prompting: Prompting, asked: QuestionBatch, answers: Sequence[str]) -> list[float]:
    """Log-loss of each question's answer in nats per token, the token that ends it counted; `asked` stays as it was."""
    targets = [prompting.answer(answer, closed=asked.closed) for answer in answers]
    logits = _answer_logits(backbone, asked.reading.context, asked.prompts, targets)
    if asked.plain is not None:
        logits = memory_aware(logits, _answer_logits(backbone, asked.plain, asked.prompts, targets), asked.weight)
    flat = torch.tensor([token for row in targets for token in row], device=logits.device)
    losses = -logits.float().log_softmax(dim=-1).gather(1, flat[:, None]).squeeze(1)  # (N,)
    return [float(part.mean()) for part in torch.split(losses, [len(row) for row in targets])]


def _answer_logits(
    backbone: Backbone, context: Context, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Tensor:
    """Logits (N, V) of all target tokens, row by row."""
    columns = context.seen.shape[1]
    rows = [[*prompt, *target[:-1]] for prompt, target in zip(prompts, targets, strict=True)]
    hidden, lengths, _ = read_rows(backbone, context, rows)
    context.cache.forget_after(columns)
    ends = lengths.tolist()
    shown = [hidden[row, ends[row] - len(target) : ends[row]] for row, target in enumerate(targets)]
    return backbone.logits(torch.cat(shown))
