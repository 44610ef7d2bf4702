"""A key/value cache that knows the position of each of its columns, with room behind them for the tokens that come next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["PlacedCache"]

_ROOM_COLUMNS = 64  # behind a context: most prompts fit, and are written in place instead of copying the context


class PlacedCache(DynamicCache):  # type: ignore[misc]
    """Positions (B, S) of its columns, as sliding windows need them, and every layer's keys and values (B, H, S, d)."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.positions = positions

    def open_columns(self, positions: Tensor) -> Tensor:
        """Notes that tokens at `positions` (B, Q) come next, and gives the positions of all columns (B, S + Q)."""
        self.positions = torch.cat([self.positions, positions], dim=1)
        return self.positions

    def forget_after(self, columns: int) -> None:
        """Is again as it was when it had `columns` columns."""
        self.crop(columns - self.positions.shape[1])  # how many to remove, below 0
        self.positions = self.positions[:, :columns]

    def add_layer(self, like: Tensor, heads: int, columns: int, width: int) -> tuple[Tensor, Tensor]:
        """A new layer's keys and values (B, H, S, d), to be written by the caller; `like` gives B, type and device."""
        layer = _RoomyLayer(like, heads, columns, width)
        self.layers.append(layer)
        return layer.keys, layer.values


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of which the columns are the first ones of a larger tensor, while no gradient is wanted."""

    def __init__(self, like: Tensor, heads: int, columns: int, width: int) -> None:
        super().__init__()
        self.lazy_initialization(like, like)
        self._kept = like.new_empty(2, len(like), heads, columns + _ROOM_COLUMNS, width)
        self.keys, self.values = self._kept[:, :, :, :columns]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the next columns (B, H, Q, d) and gives all of them."""
        start, more = self.keys.shape[2], key_states.shape[2]
        end = start + more
        if torch.is_grad_enabled() or self._kept.is_inference() != torch.is_inference_mode_enabled():
            grown: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return grown
        if end > self._kept.shape[3] or self.keys.data_ptr() != self._kept.data_ptr():
            B, H, _, d = self.keys.shape
            larger = self._kept.new_empty(2, B, H, end + max(_ROOM_COLUMNS, end // 2), d)
            larger[0, :, :, :start], larger[1, :, :, :start] = self.keys, self.values
            self._kept = larger
        self._kept[0, :, :, start:end], self._kept[1, :, :, start:end] = key_states, value_states
        self.keys, self.values = self._kept[:, :, :, :end]
        return self.keys, self.values
