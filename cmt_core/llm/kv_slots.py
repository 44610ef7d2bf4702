"""The running batch's cache: one slot a sequence, each with its own length, written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from cmt_core.llm.backbone import KVShape, PlacedCache

__all__ = ["KVSlots"]

_BUCKET_COLUMNS = 32  # attention reads whole buckets: every new shape costs the CPU kernels a re-tuning


class KVSlots:
    """Keys and values (N, H, C, d) of L layers for N slots, of which the first `len()` are in use.

    A slot given up is a hole until the next sequence takes it; `compact` moves others into those that are left, before a step
    would compute them. `update` is what a forward pass of transformers calls; it writes each slot's new token at the slot's
    own end.
    """

    def __init__(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> None:
        self._shape, self._device, self._dtype = shape, device, dtype
        self._lengths: list[int] = []
        self._positions: list[int] = []
        self._holes: set[int] = set()
        self._keys = self._room(0, 0)
        self._values = self._room(0, 0)
        self._columns = torch.zeros(0, 0, dtype=torch.long, device=device)  # (N, C) each column's position
        self._slots = self._at = torch.zeros(0, dtype=torch.long)
        self._width = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def take(self, cache: PlacedCache, row: int, seen: Tensor, position: int) -> int:
        """Copies the columns of `cache` that a row sees (S,) into a free slot; its next token stands at `position`.

        Whatever it raises, the slot is free again.
        """
        runs = _runs(seen)
        length = sum(stop - start for start, stop in runs)
        slot = self._free_slot()
        try:
            self._reserve(len(self._lengths), length)
            self._fill(slot, cache, row, runs)
        except BaseException:
            self.free(slot)
            raise
        self._lengths[slot], self._positions[slot] = length, position
        return slot

    def _fill(self, slot: int, cache: PlacedCache, row: int, runs: list[tuple[int, int]]) -> None:
        at = 0
        for start, stop in runs:  # slices: an index would copy every column twice
            end = at + stop - start
            self._columns[slot, at:end] = cache.positions[row, start:stop]
            for layer, kept in enumerate(cache.layers):
                self._keys[layer][slot, :, at:end] = kept.keys[row, :, start:stop]
                self._values[layer][slot, :, at:end] = kept.values[row, :, start:stop]
            at = end

    def free(self, slot: int) -> None:
        """Gives a slot up."""
        self._holes.add(slot)

    def compact(self) -> dict[int, int]:
        """Moves the last slots into the holes, and gives the new number of each that moved."""
        moved: dict[int, int] = {}
        while self._holes:
            last = len(self._lengths) - 1
            if last in self._holes:
                self._holes.remove(last)
            else:
                moved[last] = min(self._holes)
                self._holes.remove(moved[last])
                self._move(last, moved[last])
            self._lengths.pop()
            self._positions.pop()
        return moved

    def open_column(self) -> tuple[Tensor, Tensor]:
        """Makes room for one more token in every slot: its positions (n, 1), and what it may see (n, 1, 1, C)."""
        n = len(self._lengths)
        self._reserve(n, max(self._lengths) + 1)
        self._width = min(self._keys[0].shape[2], _bucket(max(self._lengths) + 1))
        self._at = torch.tensor(self._lengths, device=self._device)
        self._slots = torch.arange(n, device=self._device)
        positions = torch.tensor(self._positions, device=self._device)[:, None]
        attend = torch.arange(self._width, device=self._device)[None, :] <= self._at[:, None]
        self._lengths = [length + 1 for length in self._lengths]
        self._positions = [position + 1 for position in self._positions]
        return positions, attend[:, None, None]

    def open_columns(self, positions: Tensor) -> Tensor:
        """Notes the open column's positions (n, 1), and gives those of all columns (n, C)."""
        n = len(positions)
        self._columns[self._slots, self._at] = positions[:, 0]
        return self._columns[:n, : self._width]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Writes one token's keys and values (n, H, 1, d) into the open column and gives all columns (n, H, C, d)."""
        n = len(keys)
        self._keys[layer][self._slots, :, self._at] = keys[:, :, 0]
        self._values[layer][self._slots, :, self._at] = values[:, :, 0]
        return self._keys[layer][:n, :, : self._width], self._values[layer][:n, :, : self._width]

    def _free_slot(self) -> int:
        """A hole, or a new slot behind the others."""
        if self._holes:
            slot = min(self._holes)
            self._holes.remove(slot)
        else:
            slot = len(self._lengths)
            self._lengths.append(0)
            self._positions.append(0)
        return slot

    def _move(self, source: int, target: int) -> None:
        length = self._lengths[source]
        self._columns[target, :length] = self._columns[source, :length]
        for kept in (*self._keys, *self._values):
            kept[target, :, :length] = kept[source, :, :length]
        self._lengths[target], self._positions[target] = length, self._positions[source]

    def _reserve(self, slots: int, columns: int) -> None:
        """Grows by doubling slots and by whole buckets of columns; what is kept for a full batch is used again."""
        n, _, c, _ = self._values[-1].shape  # the last that grows: where memory ran out, the next call grows the rest
        if slots <= n and columns <= c:
            return
        wanted = max(n, 1 << (slots - 1).bit_length()), max(c, _bucket(columns) + _BUCKET_COLUMNS)
        more = self._columns.new_zeros(wanted)
        more[:n, :c] = self._columns[:n, :c]
        self._columns = more
        for kept in (self._keys, self._values):
            for layer, (old, new) in enumerate(zip(kept, self._room(*wanted), strict=True)):
                new[:n, :, :c] = old[:n, :, :c]
                kept[layer] = new

    def _room(self, slots: int, columns: int) -> list[Tensor]:
        # zeros, not empty: a masked column still enters the weighted sum with weight 0, and 0 * NaN is NaN
        shape = (slots, self._shape.heads, columns, self._shape.head_dim)
        return [torch.zeros(shape, device=self._device, dtype=self._dtype) for _ in range(self._shape.layers)]


def _runs(seen: Tensor) -> list[tuple[int, int]]:
    """Start and stop of every run of columns that are seen (S,)."""
    edges = torch.nn.functional.pad(seen.int(), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _bucket(columns: int) -> int:
    return -(-columns // _BUCKET_COLUMNS) * _BUCKET_COLUMNS
