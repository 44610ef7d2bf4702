"""What the LLM reads before its prompt: the placed context of a batch of questions, and the memories decoded lately."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cmt_core.alignment import Context

__all__ = ["DecodedMemories", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What B questions read: their context, which memory each column (B, S) is of (-1 for the prefix), how many memories each
    row has, and the tokens that end an answer. `text_tokens` were read as text; `passages` counts texts that share a column;
    `shares` are the memories' weights where their vectors were aggregated before the LLM reads them.
    """

    context: Context
    owner: Tensor
    sizes: list[int]
    stop_ids: set[int]
    text_tokens: list[int] | None = None
    passages: list[int] | None = None
    shares: list[list[float]] | None = None

    def prompt_tokens(self, row: int, prompt: Sequence[int]) -> int:
        """Tokens that a row's answer was asked with: its prompt, and the text before it."""
        return len(prompt) + (self.text_tokens[row] if self.text_tokens else 0)

    def weights(self, row: int, attention: Tensor) -> list[float]:
        """Each memory's share of a prompt's attention over columns (S,); texts in one prompt share it evenly."""
        if self.shares:
            return self.shares[row]
        if self.passages:
            return [1 / self.passages[row]] * self.passages[row]
        totals = attention.new_zeros(self.sizes[row] + 1)  # the first is the prefix's
        return _shares(totals.index_add_(0, (self.owner[row] + 1).clamp(max=self.sizes[row]), attention)[1:])


class DecodedMemories:
    """Keys and values (t, X) of the packed memories read last, `limit_bytes` at most; not thread-safe.

    A memory asked for again, as in a conversation or while an article is in everyone's mind, is not decoded again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    def __contains__(self, memory: bytes) -> bool:
        return memory in self._kept

    def __getitem__(self, memory: bytes) -> Tensor:
        return self._kept[memory]

    def __len__(self) -> int:
        return len(self._kept)

    def update(self, decoded: Mapping[bytes, Tensor]) -> None:
        """Keeps these as the latest, and drops the oldest over the limit."""
        for memory, rows in decoded.items():
            if memory not in self._kept:
                self._kept[memory] = rows.clone()  # a slice would keep its whole batch alive
                self._bytes += rows.nbytes
            self._kept.move_to_end(memory)
        while self._bytes > self.limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


def _shares(attention: Tensor) -> list[float]:
    total = float(attention.sum())
    return [float(part) / total for part in attention] if total > 0 else [1 / max(1, len(attention))] * len(attention)
