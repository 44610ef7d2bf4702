"""What the LLM reads before its prompt: the placed context of a batch of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cmt_core.llm.context import Context
from cmt_core.reading.packing import texts_read

__all__ = ["Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What B questions read: their context, which memory each column (B, S) is of (-1 for the prefix), how many memories each
    row has, and the tokens that end an answer. `text_tokens` were read as text; `passages` counts texts that share a column;
    `shares` are the memories' weights where their vectors were aggregated before the LLM reads them. `together` are the memories
    that each row's question takes together, in their order; empty for one that takes no two.
    """

    context: Context
    owner: Tensor
    sizes: list[int]
    stop_ids: set[int]
    text_tokens: list[int] | None = None
    passages: list[int] | None = None
    shares: list[list[float]] | None = None
    together: list[tuple[int, ...]] | None = None

    def prompt_tokens(self, row: int, prompt: Sequence[int]) -> int:
        """Tokens that a row's answer was asked with: its prompt, and the text before it."""
        return len(prompt) + (self.text_tokens[row] if self.text_tokens else 0)

    def two(self, row: int) -> tuple[int, ...]:
        """The memories that a row's question takes together, in their order; empty where it takes no two."""
        return self.together[row] if self.together else ()

    def texts_read(self, row: int, texts: Sequence[str]) -> list[str]:
        """Of a text for each of a row's memories those of the memories in its context; all where none is told from another."""
        if self.shares or self.passages or len(texts) != self.sizes[row]:
            return list(texts)
        return texts_read(texts, self.owner[row].tolist(), self.sizes[row])

    def weights(self, row: int, attention: Tensor) -> list[float]:
        """Each memory's share of a prompt's attention over columns (S,); texts in one prompt share it evenly."""
        if self.shares:
            return self.shares[row]
        if self.passages:
            return [1 / self.passages[row]] * self.passages[row]
        totals = attention.new_zeros(self.sizes[row] + 1)  # the first is the prefix's
        return _shares(totals.index_add_(0, (self.owner[row] + 1).clamp(max=self.sizes[row]), attention)[1:])


def _shares(attention: Tensor) -> list[float]:
    total = float(attention.sum())
    return [float(part) / total for part in attention] if total > 0 else [1 / max(1, len(attention))] * len(attention)
