"""From the codes of a window's tokens to its bytes, and back: in fixed numbers of bits, entropy-coded, or unrounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.errors import ConfigError, MemoryFormatError
from cmt_core.memory.blocks import TokenBlocks, check_shape
from cmt_core.memory.entropy_codes import EntropyCodes
from cmt_core.memory.quantiser import Quantiser

__all__ = ["FittedRounding", "HalfCodes", "RoundedCodes", "Rounding", "fitted_rounding", "stored_rounding"]


class Rounding(Protocol):
    """How codes are kept."""

    def pack(self, codes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """The bytes of each row of codes (B, T, C), of which the first `lengths` are tokens."""
        ...

    def unpack(self, packed: Sequence[bytes], lengths: Sequence[int]) -> Tensor:
        """Codes (tokens, C) of all rows, one behind the other; raises MemoryFormatError for bytes that can't be."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Rounding:
        """The same on `device`, with products in `dtype`."""
        ...


class RoundedCodes:
    """Each token's numbers rounded by `quantiser` to a fixed number of bits each (`code_storage` packed)."""

    def __init__(self, quantiser: Quantiser) -> None:
        self.quantiser = quantiser

    @classmethod
    def fit(cls, sigma: Tensor, bits_per_token: int) -> RoundedCodes:
        """For a code whose numbers have deviations `sigma` (C,)."""
        return cls(Quantiser.fit(sigma.double().cpu().numpy(), bits_per_token))

    @classmethod
    def stored(cls, config: MemoryConfig, tensors: Mapping[str, Tensor]) -> RoundedCodes:
        """Out of a checkpoint's tensors. Raises ConfigError for tensors of other sizes."""
        for name in ("bits", "steps"):
            check_shape(name, tensors[name], (config.code_width,))
        if (bits := int(tensors["bits"].sum())) != config.bits_per_token:
            raise ConfigError(f"the quantiser has {bits} bits a token, not {config.bits_per_token}")
        return cls(Quantiser(tensors["bits"].numpy().astype("int64"), tensors["steps"]))

    def tensors(self) -> dict[str, Tensor]:
        """What `stored` reads, as a checkpoint keeps it."""
        return {"steps": self.quantiser.steps.float(), "bits": torch.from_numpy(self.quantiser.bits).to(torch.int8)}

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> RoundedCodes:
        """See Rounding."""
        return RoundedCodes(self.quantiser.to(device))

    def with_bits(self, bits_per_token: int) -> RoundedCodes:
        """The same numbers with another number of bits a token."""
        return RoundedCodes(self.quantiser.with_bits(bits_per_token))

    def round(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Codes (B, T, C) as they are kept, with a straight-through gradient."""
        return self.quantiser.round(codes)

    def pack(self, codes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """See Rounding. A GPU packs where it is: it writes more than a CPU can pack."""
        levels = self.quantiser.levels(codes)
        if levels.device.type != "cpu":
            packed = self.quantiser.packed(levels).cpu().numpy()
            return [row[:length].tobytes() for row, length in zip(packed, lengths, strict=True)]
        whole = levels.to(torch.int16).numpy()
        return [self.quantiser.pack(row[:length]) for row, length in zip(whole, lengths, strict=True)]

    def unpack(self, packed: Sequence[bytes], lengths: Sequence[int]) -> Tensor:
        """See Rounding."""
        levels = np.concatenate([self.quantiser.unpack(row) for row in packed]).astype(np.float32)
        return self.quantiser.values(torch.from_numpy(levels).to(self.quantiser.steps.device))


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


FittedRounding = RoundedCodes | EntropyCodes
"""What a checkpoint has; `HalfCodes` need no fit."""


def fitted_rounding(config: MemoryConfig, codes: Sequence[Tensor]) -> FittedRounding:
    """For a code's numbers as they vary in sample texts' codes, (t, C) each."""
    if config.code_storage == "entropy":
        return EntropyCodes.fit(*TokenBlocks.fit(codes, config.block_tokens), config.bits_per_token)
    return RoundedCodes.fit(torch.cat(list(codes)).std(dim=0), config.bits_per_token)


def stored_rounding(config: MemoryConfig, tensors: Mapping[str, Tensor]) -> FittedRounding:
    """Out of a checkpoint's tensors. Raises ConfigError for tensors of other sizes."""
    if config.code_storage == "entropy":
        return EntropyCodes.stored(config, tensors)
    return RoundedCodes.stored(config, tensors)
