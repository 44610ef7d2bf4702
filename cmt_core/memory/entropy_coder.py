"""Levels of normally distributed numbers as bytes, close to their entropy.

What a number takes follows from how far it varies, in fractions of a bit, and a level that is seldom takes more than one that is
not: numbers that hardly vary cost next to nothing, where a fixed number of bits costs one at least.

Asymmetric numeral systems (Duda 2013, arXiv 1311.2540), the range variant: many states at once ("lanes") share one stream of
16-bit words, so that all lanes of all memories take a step together. Everything here is whole numbers: what was written on
one machine is read alike on any other.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.errors import ConfigError, MemoryFormatError

__all__ = ["ALPHABET", "MOST", "EntropyCoder", "normal_frequencies"]

MOST = 511
"""The largest level."""
ALPHABET = 2 * MOST + 1
ZERO_UP_TO = 0.6
"""In steps: what lies nearer to 0 has level 0. Of normal numbers this wider cell costs less than it loses."""

_PRECISION = 14  # bits of a frequency
_WHOLE = 1 << _PRECISION
_WORD = 16
_LOW = 1 << _WORD  # a lane's state stays within 2^16 and 2^32
_STATE_BYTES = 4


def normal_frequencies(deviations: list[float]) -> Tensor:
    """How often each level comes of 2^14 numbers with these deviations, in steps: (len, ALPHABET) int16, level l at l + MOST.

    A level that can be had has at least 1; those beyond five deviations have 0.
    """
    rows = []
    for sigma in deviations:
        reach = min(MOST, max(1, math.ceil(5 * sigma)))
        row = np.zeros(ALPHABET, dtype=np.int64)
        row[MOST - reach : MOST + reach + 1] = 1
        left = _WHOLE - row.sum()
        edges = [level - 1 + ZERO_UP_TO for level in range(1, reach + 1)]
        beyond = [round(left * math.erfc(edge / sigma / math.sqrt(2)) / 2) for edge in edges] + [0]
        for level in range(1, reach + 1):
            share = beyond[level - 1] - beyond[level]
            row[MOST + level] += share
            row[MOST - level] += share
        row[MOST] += left - 2 * beyond[0]
        rows.append(row)
    return torch.from_numpy(np.stack(rows).astype(np.int16))


class EntropyCoder:
    """Codes levels by tables of `frequencies` (tables, ALPHABET); a table names every level's share of 2^14."""

    def __init__(self, frequencies: Tensor) -> None:
        """Raises ConfigError for what are no such tables."""
        self.frequencies = frequencies.cpu()
        whole = self.frequencies.long()
        if whole.dim() != 2 or whole.shape[1] != ALPHABET or (whole < 0).any() or (whole.sum(dim=1) != _WHOLE).any():
            raise ConfigError(
                f"frequencies of shape {tuple(whole.shape)} are no shares of {_WHOLE} among {ALPHABET} levels"
            )
        certain = torch.zeros(1, ALPHABET, dtype=torch.long)
        certain[0, MOST] = _WHOLE
        self._often = torch.cat([certain, whole])  # table 0 has level 0 alone, and costs nothing
        self._below = self._often.cumsum(dim=1) - self._often

    @cached_property
    def bits(self) -> Tensor:
        """What a level costs, (1 + tables, MOST + 1) by its absolute value; infinite where it can't be had."""
        return -(self._often[:, MOST:].double() / _WHOLE).log2().float()

    @cached_property
    def reach(self) -> Tensor:
        """The largest level of each table, (1 + tables,)."""
        return (self._often[:, MOST:] > 0).sum(dim=1) - 1

    @cached_property
    def _slots(self) -> NDArray[np.int64]:
        """Of each table and each remainder of a state by 2^14: level, place within the level's share, and the share's size."""
        packed = []
        for often in self._often.numpy():
            level = np.repeat(np.arange(ALPHABET), often)
            within = np.arange(_WHOLE) - np.repeat(np.cumsum(often) - often, often)
            packed.append(level << 32 | within << 16 | often[level])
        return np.concatenate(packed)

    def overhead(self, lanes: int) -> int:
        """What so many lanes hardly ever cost more bits than, beside `bits`: a state has 32, of which levels fill up to 16."""
        return min(32 * lanes, 24 * lanes + math.ceil(14 * math.sqrt(lanes)))

    def least_bytes(self, lanes: int) -> int:
        """Bytes of a stream of so many lanes whose levels cost nothing."""
        return _STATE_BYTES * lanes

    @torch.no_grad()
    def encode(self, levels: Tensor, tables: Tensor, lanes: list[int]) -> list[bytes]:
        """Streams of B memories' levels (S, B, W), one a step and lane; of the W lanes of a row the first `lanes` are used.

        tables (S, B, W) says by which table each is coded, 0 for one that is not. All are whole numbers on one device.
        """
        S, B, W = levels.shape
        device = levels.device
        often, below = self._often.to(device), self._below.to(device)
        state = torch.full((B, W), _LOW, dtype=torch.long, device=device)
        words = torch.zeros(S, B, W, dtype=torch.int32, device=device)
        written = torch.zeros(S, B, W, dtype=torch.bool, device=device)
        for step in range(S - 1, -1, -1):
            place = tables[step] * ALPHABET + levels[step] + MOST
            share = often.flatten()[place]
            full = state >= share << (32 - _PRECISION)
            words[step], written[step] = state & (_LOW - 1), full
            state = torch.where(full, state >> _WORD, state)
            state = (state // share << _PRECISION) + state % share + below.flatten()[place]
        first = state.cpu().numpy().astype("<u4")
        rest, used = words.cpu().numpy().astype("<u2"), written.cpu().numpy()
        return [
            first[row, : lanes[row]].tobytes() + rest[:, row, : lanes[row]][used[:, row, : lanes[row]]].tobytes()
            for row in range(B)
        ]

    def decode(self, streams: list[bytes], tables: NDArray[np.int64], lanes: list[int]) -> NDArray[np.int16]:
        """Levels (S, B, W) of streams, whose ends may be filled up; tables (S, B, W) and `lanes` as they were encoded.

        Raises MemoryFormatError for bytes that no levels have.
        """
        S, B, W = tables.shape
        state = np.full((B, W), _LOW, dtype=np.int64)
        for row, (stream, used) in enumerate(zip(streams, lanes, strict=True)):
            if len(stream) < _STATE_BYTES * used:
                raise MemoryFormatError(f"a memory of {len(stream)} bytes lacks the states of {used} lanes")
            state[row, :used] = np.frombuffer(stream, dtype="<u4", count=used)
        words = self._words(streams, lanes, S * W)
        offsets, slots = tables << _PRECISION, self._slots
        every = np.empty((S, B, W), dtype=np.int64)
        place, part, low = np.empty_like(state), np.empty_like(state), np.empty((B, W), dtype=bool)
        read = np.arange(B)[:, None] * words.shape[1]
        for found, offset in zip(every, offsets, strict=True):  # in place: a step has a few hundred numbers alone
            np.bitwise_and(state, _WHOLE - 1, out=place)
            place += offset
            slots.take(place, out=found, mode="clip")
            state >>= _PRECISION
            state *= np.bitwise_and(found, 0xFFFF, out=part)
            np.right_shift(found, 16, out=part)
            state += np.bitwise_and(part, 0xFFFF, out=part)
            np.less(state, _LOW, out=low)
            np.cumsum(low, axis=1, out=place)
            place += read
            read = place[:, -1:].copy()
            words.take(place, out=part, mode="clip")
            part *= low
            state <<= np.multiply(low, _WORD, out=place)
            state |= part
        if (state != _LOW).any():
            raise MemoryFormatError("a memory's bytes are damaged, or another checkpoint's")
        levels: NDArray[np.int16] = (every >> 32).astype(np.int16) - MOST
        return levels

    @staticmethod
    def _words(streams: list[bytes], lanes: list[int], most: int) -> NDArray[np.int64]:
        """The words behind each stream's states, from place 1 on, with room for `most` of them."""
        words = np.zeros((len(streams), most + 1), dtype=np.int64)
        for row, (stream, used) in enumerate(zip(streams, lanes, strict=True)):
            count = min(most, (len(stream) - _STATE_BYTES * used) // 2)
            rest = np.frombuffer(stream, dtype="<u2", count=count, offset=_STATE_BYTES * used)
            words[row, 1 : 1 + len(rest)] = rest
        return words
