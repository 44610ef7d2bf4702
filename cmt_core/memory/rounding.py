"""From the codes of a window's tokens to its bytes, and back: rounded token by token or block by block, or unrounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cmt_core.errors import MemoryFormatError
from cmt_core.memory.blocks import TokenBlocks
from cmt_core.memory.quantiser import Quantiser

__all__ = ["HalfCodes", "RoundedCodes", "Rounding"]


class Rounding(Protocol):
    """How codes are kept."""

    def pack(self, codes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """The bytes of each row of codes (B, T, C), of which the first `lengths` are tokens."""
        ...

    def unpack(self, packed: Sequence[bytes], lengths: Sequence[int]) -> Tensor:
        """Codes (tokens, C) of all rows, one behind the other; raises MemoryFormatError for a size that can't be."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Rounding:
        """The same on `device`, with products in `dtype`."""
        ...


class RoundedCodes:
    """Codes rounded by `quantiser`: each token's own, or what `blocks` make of the codes of a few tokens in a row."""

    def __init__(self, quantiser: Quantiser, blocks: TokenBlocks | None = None) -> None:
        self.quantiser, self.blocks = quantiser, blocks

    @classmethod
    def fit(cls, sigma: Tensor, bits_per_token: int, blocks: TokenBlocks | None = None) -> RoundedCodes:
        """For a code's numbers, or its blocks', with deviations `sigma` (C,) or (m * C,); blocks keep those that get a bit."""
        deviations = sigma.double().cpu().numpy()
        if blocks is None:
            return cls(Quantiser.fit(deviations, bits_per_token))
        total = bits_per_token * blocks.tokens
        used = max(1, int((Quantiser.fit(deviations, total).bits > 0).sum()))
        return cls(Quantiser.fit(deviations[:used], total), blocks.first(used))

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> RoundedCodes:
        """See Rounding."""
        return RoundedCodes(self.quantiser.to(device), self.blocks.to(device, dtype) if self.blocks else None)

    def with_bits(self, bits_per_token: int) -> RoundedCodes:
        """The same numbers with another number of bits a token."""
        tokens = self.blocks.tokens if self.blocks else 1
        return RoundedCodes(self.quantiser.with_bits(bits_per_token * tokens), self.blocks)

    def round(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Codes (B, T, C) as they are kept, with a straight-through gradient; the first `lengths` (B,) of a row are tokens."""
        if self.blocks is None:
            return self.quantiser.round(codes)
        return self.blocks.codes(self.quantiser.round(self.blocks.of(codes, lengths)))[:, : codes.shape[1]]

    def pack(self, codes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """See Rounding. A GPU packs where it is: it writes more than a CPU can pack."""
        numbers = codes if self.blocks is None else self.blocks.of(codes, torch.tensor(lengths))
        levels = self.quantiser.levels(numbers)
        rows = [self._rows(length) for length in lengths]
        if levels.device.type != "cpu":
            packed = self.quantiser.packed(levels).cpu().numpy()
            return [row[:count].tobytes() for row, count in zip(packed, rows, strict=True)]
        whole = levels.to(torch.int16).numpy()
        return [self.quantiser.pack(row[:count]) for row, count in zip(whole, rows, strict=True)]

    def unpack(self, packed: Sequence[bytes], lengths: Sequence[int]) -> Tensor:
        """See Rounding."""
        levels = np.concatenate([self.quantiser.unpack(row) for row in packed]).astype(np.float32)
        values = self.quantiser.values(torch.from_numpy(levels).to(self.quantiser.steps.device))
        if self.blocks is None:
            return values
        size = self.blocks.tokens
        parts = torch.split(self.blocks.codes(values), [size * self._rows(length) for length in lengths])
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def _rows(self, length: int) -> int:
        return -(-length // self.blocks.tokens) if self.blocks else length


class HalfCodes:
    """Codes of C components as they are, in float16: 2 * C bytes a token."""

    def __init__(self, code_width: int, device: torch.device | None = None) -> None:
        self._code_width, self._device = code_width, device or torch.device("cpu")

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> HalfCodes:
        """See Rounding."""
        return HalfCodes(self._code_width, device)

    def pack(self, codes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """See Rounding."""
        rows = codes.to(torch.float16).cpu().numpy().astype("<f2")
        return [np.ascontiguousarray(row[:length]).tobytes() for row, length in zip(rows, lengths, strict=True)]

    def unpack(self, packed: Sequence[bytes], lengths: Sequence[int]) -> Tensor:
        """See Rounding."""
        whole = b"".join(packed)
        if len(whole) % (2 * self._code_width):
            raise MemoryFormatError(f"memories of {len(whole)} bytes are no multiple of {2 * self._code_width}")
        codes = np.frombuffer(whole, dtype="<f2").reshape(-1, self._code_width)
        return torch.from_numpy(codes.astype(np.float32)).to(self._device)
