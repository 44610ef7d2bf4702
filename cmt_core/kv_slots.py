"""The running batch's cache: one slot a sequence, each with its own length, written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from cmt_core.backbone import KVShape, PlacedCache

__all__ = ["KVSlots"]

_BUCKET_COLUMNS = 32  # attention reads whole buckets: every new shape costs the CPU kernels a re-tuning


class KVSlots:
    """Keys and values (N, H, C, d) of L layers for N slots, of which the first `len()` are in use, without holes.

    `update` is what a forward pass of transformers calls; it writes each slot's new token at the slot's own end.
    """

    def __init__(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> None:
        self._shape, self._device, self._dtype = shape, device, dtype
        self._lengths: list[int] = []
        self._positions: list[int] = []
        self._keys = self._room(0, 0)
        self._values = self._room(0, 0)
        self._columns = torch.zeros(0, 0, dtype=torch.long, device=device)  # (N, C) each column's position
        self._at = torch.zeros(0, dtype=torch.long)
        self._width = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def take(self, cache: PlacedCache, row: int, seen: Tensor, position: int) -> int:
        """Copies the columns of `cache` that a row sees (S,) into a new slot; its next token stands at `position`."""
        columns = seen.nonzero().squeeze(1)
        slot, length = len(self._lengths), len(columns)
        self._reserve(slot + 1, length)
        self._columns[slot, :length] = cache.positions[row][columns]
        for layer, kept in enumerate(cache.layers):
            self._keys[layer][slot, :, :length] = kept.keys[row][:, columns]
            self._values[layer][slot, :, :length] = kept.values[row][:, columns]
        self._lengths.append(length)
        self._positions.append(position)
        return slot

    def free(self, slot: int) -> int:
        """Gives a slot up; the last slot moves into its place, and its old number is returned."""
        last = len(self._lengths) - 1
        if slot != last:
            length = self._lengths[last]
            self._columns[slot, :length] = self._columns[last, :length]
            for layer in range(self._shape.layers):
                self._keys[layer][slot, :, :length] = self._keys[layer][last, :, :length]
                self._values[layer][slot, :, :length] = self._values[layer][last, :, :length]
        self._lengths[slot], self._positions[slot] = self._lengths[last], self._positions[last]
        self._lengths.pop()
        self._positions.pop()
        return last

    def open_column(self) -> tuple[Tensor, Tensor]:
        """Makes room for one more token in every slot: its positions (n, 1), and what it may see (n, 1, 1, C)."""
        n = len(self._lengths)
        self._reserve(n, max(self._lengths) + 1)
        self._width = min(self._keys[0].shape[2], _bucket(max(self._lengths) + 1))
        self._at = torch.tensor(self._lengths, device=self._device)
        positions = torch.tensor(self._positions, device=self._device)[:, None]
        attend = torch.arange(self._width, device=self._device)[None, :] <= self._at[:, None]
        self._lengths = [length + 1 for length in self._lengths]
        self._positions = [position + 1 for position in self._positions]
        return positions, attend[:, None, None]

    def open_columns(self, positions: Tensor) -> Tensor:
        """Notes the open column's positions (n, 1), and gives those of all columns (n, C)."""
        n = len(positions)
        self._columns[torch.arange(n, device=self._device), self._at] = positions[:, 0]
        return self._columns[:n, : self._width]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Writes one token's keys and values (n, H, 1, d) into the open column and gives all columns (n, H, C, d)."""
        n = len(keys)
        slots = torch.arange(n, device=self._device)
        self._keys[layer][slots, :, self._at] = keys[:, :, 0]
        self._values[layer][slots, :, self._at] = values[:, :, 0]
        return self._keys[layer][:n, :, : self._width], self._values[layer][:n, :, : self._width]

    def _reserve(self, slots: int, columns: int) -> None:
        """Grows by doubling slots and by whole buckets of columns; what is kept for a full batch is used again."""
        n, _, c, _ = self._keys[0].shape
        if slots <= n and columns <= c:
            return
        wanted = max(n, 1 << (slots - 1).bit_length()), max(c, _bucket(columns) + _BUCKET_COLUMNS)
        columns_before, self._columns = self._columns, self._columns.new_zeros(wanted)
        self._columns[:n, :c] = columns_before
        for kept in (self._keys, self._values):
            for layer, (old, new) in enumerate(zip(kept, self._room(*wanted), strict=True)):
                new[:n, :, :c] = old
                kept[layer] = new

    def _room(self, slots: int, columns: int) -> list[Tensor]:
        # zeros, not empty: a masked column still enters the weighted sum with weight 0, and 0 * NaN is NaN
        shape = (slots, self._shape.heads, columns, self._shape.head_dim)
        return [torch.zeros(shape, device=self._device, dtype=self._dtype) for _ in range(self._shape.layers)]


def _bucket(columns: int) -> int:
    return -(-columns // _BUCKET_COLUMNS) * _BUCKET_COLUMNS
