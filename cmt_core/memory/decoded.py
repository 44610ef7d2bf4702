"""The memories decoded lately, as keys and values that the next questions need not decode again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

__all__ = ["DecodedMemories"]


class DecodedMemories:
    """Keys and values (t, X) of the packed memories read last, in as many fixed slots of `window` rows as `limit_bytes` hold.

    A memory asked for again, as in a conversation or while an article is in everyone's mind, is not decoded again. The slots are
    one tensor, made once: tensors of every size that come and go would leave holes in the heap. Not thread-safe.
    """

    def __init__(self, limit_bytes: int, window: int) -> None:
        self.limit_bytes = limit_bytes
        self._window = window
        self._slots: Tensor | None = None  # (slots, window, X)
        self._kept: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # slot and rows, the oldest first

    def __contains__(self, memory: bytes) -> bool:
        return memory in self._kept

    def __getitem__(self, memory: bytes) -> Tensor:
        """A view of the slot, good until the next `keep`."""
        assert self._slots is not None
        slot, rows = self._kept[memory]
        return self._slots[slot, :rows]

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, decoded: Mapping[bytes, Tensor]) -> None:
        """Makes these the latest; where no slot is free, they take those of the oldest."""
        for memory in decoded.keys() & self._kept.keys():
            self._kept.move_to_end(memory)
        for memory in [memory for memory in decoded if memory not in self._kept]:
            rows = decoded[memory]
            slots = self._made(rows)
            if not len(slots):
                return
            full = len(self._kept) == len(slots)
            slot = self._kept.popitem(last=False)[1][0] if full else len(self._kept)
            slots[slot, : len(rows)] = rows
            self._kept[memory] = slot, len(rows)

    def _made(self, like: Tensor) -> Tensor:
        if self._slots is None:
            count = self.limit_bytes // (self._window * like[0].nbytes)
            self._slots = like.new_empty(count, self._window, like.shape[1])
        return self._slots
