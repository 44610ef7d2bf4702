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
    """Keys and values (t, X) of the packed memories read last, in as many rooms of `window` rows as `limit_bytes` hold.

    A memory asked for again, as in a conversation or while an article is in everyone's mind, is not decoded again. The rooms are
    one tensor, made once: tensors of every size that come and go would leave holes in the heap. Not thread-safe.
    """

    def __init__(self, limit_bytes: int, window: int) -> None:
        self.limit_bytes = limit_bytes
        self._window = window
        self._rooms: Tensor | None = None  # (rooms, window, X)
        self._kept: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # room and rows, the oldest first

    def __contains__(self, memory: bytes) -> bool:
        return memory in self._kept

    def __getitem__(self, memory: bytes) -> Tensor:
        """A view of the room, good until the next `keep`."""
        assert self._rooms is not None
        room, rows = self._kept[memory]
        return self._rooms[room, :rows]

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, decoded: Mapping[bytes, Tensor]) -> None:
        """Makes these the latest; where there is no room left, they take those of the oldest."""
        for memory in decoded.keys() & self._kept.keys():
            self._kept.move_to_end(memory)
        for memory in [memory for memory in decoded if memory not in self._kept]:
            rows = decoded[memory]
            rooms = self._made(rows)
            if not len(rooms):
                return
            full = len(self._kept) == len(rooms)
            room = self._kept.popitem(last=False)[1][0] if full else len(self._kept)
            rooms[room, : len(rows)] = rows
            self._kept[memory] = room, len(rows)

    def _made(self, like: Tensor) -> Tensor:
        if self._rooms is None:
            count = self.limit_bytes // (self._window * like[0].nbytes)
            self._rooms = like.new_empty(count, self._window, like.shape[1])
        return self._rooms


def _shares(attention: Tensor) -> list[float]:
    total = float(attention.sum())
    return [float(part) / total for part in attention] if total > 0 else [1 / max(1, len(attention))] * len(attention)
