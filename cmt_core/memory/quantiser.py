"""How numbers become bytes: fixed-step quantisation with bits shared out by variance.

Bits follow reverse water-filling over the components' variances (Cover and Thomas, ch. 10.3), as in KVTC (arXiv 2511.01815).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.errors import ConfigError, MemoryFormatError

__all__ = ["Quantiser", "share_bits"]

MAX_BITS = 8
# Steps of the uniform quantiser of least squared error for a unit normal, in sigma (Max 1960); above 4 bits, 7 sigma / 2^b
# leaves room for the heavier tails of keys and values.
_STEP_SIGMA = {1: 1.6, 2: 1.0, 3: 0.6, 4: 0.335}


def share_bits(variance: NDArray[np.float64], total_bits: int) -> NDArray[np.int64]:
    """Bits per component (C,), summing to `total_bits`: each next bit goes where it removes most squared error.

    Greedy sharing is reverse water-filling in whole bits: a bit quarters the error of its component. Raises ConfigError
    when the components can't hold that many bits.
    """
    if total_bits > MAX_BITS * len(variance):
        raise ConfigError(f"{len(variance)} components can't hold {total_bits} bits (at most {MAX_BITS} each)")
    bits = np.zeros(len(variance), dtype=np.int64)
    error = variance.astype(np.float64).copy()
    for _ in range(total_bits):
        best = int(np.argmax(error))
        bits[best] += 1
        error[best] = error[best] / 4 if bits[best] < MAX_BITS else -1.0
    return bits


class Quantiser:
    """Rounds rows of C numbers (..., C) to `bits` each with fixed steps, and packs them.

    Mid-rise: level i stands for (i + 0.5) * step. A number of 0 bits is always 0. Gradients pass straight through.
    """

    def __init__(self, bits: NDArray[np.int64], steps: Tensor) -> None:
        self.bits = bits
        self.steps = steps  # (C,)
        self.row_bytes = int(bits.sum()) // 8
        self._low = torch.from_numpy(-(2 ** np.maximum(bits - 1, 0))).to(steps)
        self._high = torch.from_numpy(2 ** np.maximum(bits - 1, 0) - 1).to(steps)
        self._keep = torch.from_numpy(bits > 0).to(steps)
        used = np.arange(MAX_BITS)[None, :] < bits[:, None]  # (C, 8): bit j of component c is stored
        self._stored = np.flatnonzero(used)
        self._shift = np.where(bits > 0, 2 ** np.maximum(bits - 1, 0), 0).astype(np.int16)  # makes levels unsigned

    @classmethod
    def fit(cls, sigma: NDArray[np.float64], total_bits: int) -> Quantiser:
        """Bits and steps for components with standard deviations `sigma` (C,)."""
        bits = share_bits(sigma**2, total_bits)
        steps = [s * _STEP_SIGMA.get(int(b), 7.0 / 2.0 ** int(b)) for s, b in zip(sigma, bits, strict=True)]
        return cls(bits, torch.tensor(steps, dtype=torch.float32).clamp_min(1e-12))  # 0 / 0 of a constant component

    def with_bits(self, total_bits: int) -> Quantiser:
        """A quantiser of the same components at another number of bits a token."""
        in_sigma = [_STEP_SIGMA.get(int(b), 7.0 / 2.0 ** int(b)) for b in self.bits]
        return Quantiser.fit(self.steps.double().cpu().numpy() / np.array(in_sigma), total_bits).to(self.steps.device)

    def to(self, device: torch.device) -> Quantiser:
        """The same quantiser with its tensors on `device`."""
        return Quantiser(self.bits, self.steps.to(device))

    def levels(self, z: Tensor) -> Tensor:
        """Integer levels (as floats) of codes (..., C)."""
        return torch.clamp(torch.floor(z / self.steps), self._low, self._high) * self._keep

    def values(self, levels: Tensor) -> Tensor:
        """Codes (..., C) that levels stand for."""
        return (levels + 0.5) * self.steps * self._keep

    def round(self, z: Tensor) -> Tensor:
        """Rounded codes with a straight-through gradient."""
        rounded = self.values(self.levels(z.detach()))
        return z + (rounded - z).detach()

    def pack(self, levels: NDArray[np.int16]) -> bytes:
        """Levels (T, C) as T * row_bytes bytes."""
        unsigned = (levels + self._shift).astype(np.uint8)
        every = np.unpackbits(unsigned, axis=1, bitorder="little")  # (T, C * 8)
        return np.packbits(every.take(self._stored, axis=1), axis=1).tobytes()

    def packed(self, levels: Tensor) -> Tensor:
        """The bytes of `pack` (..., row_bytes), of levels (..., C) where they are: a GPU writes more than a CPU can pack."""
        device = levels.device
        unsigned = (levels + torch.from_numpy(self._shift).to(levels)).to(torch.uint8)
        places = torch.arange(MAX_BITS, dtype=torch.uint8, device=device)
        every = (unsigned[..., None] >> places & 1).flatten(-2)  # (..., C * 8)
        stored = every[..., torch.from_numpy(self._stored).to(device)]
        bits = stored.view(*levels.shape[:-1], self.row_bytes, 8)
        rows: Tensor = (bits << places.flip(0)).sum(dim=-1, dtype=torch.uint8)
        return rows

    def unpack(self, packed: bytes) -> NDArray[np.int16]:
        """Levels (T, C) of packed bytes. Raises MemoryFormatError when the size is not a whole number of rows."""
        if len(packed) % self.row_bytes:
            raise MemoryFormatError(f"a memory of {len(packed)} bytes is no multiple of {self.row_bytes}")
        rows = np.frombuffer(packed, dtype=np.uint8).reshape(-1, self.row_bytes)
        every = np.zeros((len(rows), len(self.bits) * MAX_BITS), dtype=np.uint8)
        every[:, self._stored] = np.unpackbits(rows, axis=1)
        return np.packbits(every, axis=1, bitorder="little").astype(np.int16) - self._shift
