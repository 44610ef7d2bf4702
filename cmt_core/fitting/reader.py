"""The frozen LLM in its chat template, with the exact keys and values of passages or with what a code makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_core.fitting.fit_config import Progress
from cmt_core.generation.greedy import generate
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context, read_rows
from cmt_core.llm.tokens import Tokens
from cmt_core.reading.aggregation import adjoining
from cmt_core.reading.alignment import place_chosen
from cmt_core.reading.chat_prompting import INSTRUCTION, ChatPrompting

__all__ = ["ChatReader", "Item", "batches", "wide_batches"]

_ROWS = 8  # windows read, or gradients taken, together
_CONTEXT_BYTES = (
    192 * 2**20
)  # of windows behind which answers are written together: weights are read once a step for all


@dataclass(slots=True)
class Item:
    """A window's tokens with its exact rows (T, X); its question and the answer to it, as prompt and target tokens."""

    ids: list[int]
    exact: Tensor
    question: str = ""
    prompt: list[int] | None = None
    target: list[int] | None = None


class ChatReader:
    """Reads windows behind the head of the chat template, and asks about them there."""

    def __init__(self, backbone: Backbone, instruction: str = INSTRUCTION) -> None:
        """Raises UnsupportedModelError when the LLM has no usable chat template."""
        self.backbone, self.instruction = backbone, instruction
        self.tokens = Tokens(backbone)
        self.prompting = ChatPrompting(self.tokens, backbone.model.generation_config, instruction)
        self.head = self._read_head()  # (p, X)

    def windows(self, texts: Sequence[str], limit: int, progress: Progress, stage: str) -> list[Item]:
        """Exact rows of every window, kept on the CPU."""
        ids = [self.prompting.document(text, limit) for text in texts]
        items: dict[int, Item] = {}
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            batch, mask = self.tokens.padded([ids[row] for row in rows])
            with torch.no_grad():
                exact = self.backbone.read(batch, mask, self.head).cpu()
            items.update({row: Item(ids[row], exact[i, : len(ids[row])].clone()) for i, row in enumerate(rows)})
            progress(stage, len(items), len(ids))
        return [items[row] for row in range(len(ids))]

    def context(self, rows: Sequence[Tensor | None]) -> Context:
        """Each row's own window behind the head: rows (t, X) of any type, None for no window."""
        sizes = [0 if one is None else len(one) for one in rows]
        device, dtype, X = self.backbone.device, self.backbone.dtype, self.backbone.shape.width
        parts = [
            torch.zeros(0, X, dtype=dtype, device=device) if one is None else one.to(device, dtype) for one in rows
        ]
        padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)  # (B, T, X)
        mask = torch.arange(max(sizes), device=device)[None, :] < torch.tensor(sizes, device=device)[:, None]
        return place_chosen(self.backbone, self.head, padded, adjoining(mask[:, None]))

    @torch.inference_mode()
    def answers(
        self, items: Sequence[Item], prompts: Sequence[list[int]], max_new_tokens: int, stop_ids: set[int]
    ) -> list[list[int]]:
        """Greedy answers in tokens to prompts, each behind its own exact window, up to one of `stop_ids`, which is left out."""
        context = self.context([item.exact for item in items])
        return [one.ids for one in generate(self.backbone, context, prompts, max_new_tokens, stop_ids)]

    def nats(self, context: Context, items: Sequence[Item]) -> Tensor:
        """Log-loss in nats a token of each item's target behind its row of `context` (B,); gradients pass."""
        pairs = [(item.prompt or [], item.target or []) for item in items]
        hidden, lengths, _ = read_rows(self.backbone, context, [[*prompt, *target[:-1]] for prompt, target in pairs])
        losses = []
        for row, (_, target) in enumerate(pairs):
            end = int(lengths[row])
            logits = self.backbone.logits(hidden[row, end - len(target) : end]).float()
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(target, device=logits.device)))
        return torch.stack(losses)

    @torch.no_grad()
    def all_nats(self, items: Sequence[Item], rows: Callable[[Item], Tensor | None]) -> float:
        """The mean log-loss of items' targets, each behind what `rows` makes of its window."""
        parts = batches(items)
        total = sum(float(self.nats(self.context([rows(item) for item in part]), part).sum()) for part in parts)
        return total / len(items)

    def _read_head(self) -> Tensor:
        ids = torch.tensor([self.prompting.head], device=self.backbone.device)
        nothing = torch.zeros(0, self.backbone.shape.width, dtype=self.backbone.dtype, device=self.backbone.device)
        with torch.no_grad():
            rows: Tensor = self.backbone.read(ids, torch.ones_like(ids), nothing)[0]
        return rows.half().to(self.backbone.dtype)  # as a checkpoint keeps it


def batches(items: Sequence[Item], rows: int = _ROWS) -> list[list[Item]]:
    """Items of like length together."""
    order = sorted(items, key=lambda item: len(item.ids))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def wide_batches(items: Sequence[Item]) -> list[list[Item]]:
    """As many items of like length together as writing answers can keep in memory."""
    if not items:
        return []
    longest = max(item.exact.nbytes for item in items)
    return batches(items, max(_ROWS, _CONTEXT_BYTES // longest))
