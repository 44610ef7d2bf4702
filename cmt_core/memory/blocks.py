"""Codes of a few neighbouring tokens turned together, so that what one tells of the next is kept once.

The codes of m tokens in a row are one vector of m * C numbers, and `basis` is its Karhunen-Loève transform: the PCA of such
vectors in sample texts. Its first numbers vary far more than its last, and the bits go where they do.

Source: transform coding (Goyal 2001, "Theoretical foundations of transform coding").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_core.errors import ConfigError

__all__ = ["TokenBlocks", "check_shape"]


class TokenBlocks:
    """An orthonormal `basis` (m * C, N) of the codes of m tokens in a row, N numbers a block."""

    def __init__(self, basis: Tensor, tokens: int) -> None:
        self.basis, self.tokens = basis, tokens

    @classmethod
    @torch.no_grad()
    def fit(cls, codes: Sequence[Tensor], tokens: int) -> tuple[TokenBlocks, Tensor]:
        """The whole basis of texts' codes, (t, C) each, and the deviation (m * C,) of each of its numbers, in falling order.

        Every stretch of m tokens counts, wherever it begins.
        """
        size = tokens * codes[0].shape[-1]
        total, count = torch.zeros(size, size, dtype=torch.float64), 0
        for text in codes:
            for start in range(min(tokens, len(text) - tokens + 1)):
                whole = (len(text) - start) // tokens
                rows = text[start : start + whole * tokens].reshape(whole, size).cpu()
                total += (rows.T @ rows).double()
                count += whole
        variance, basis = torch.linalg.eigh(total / max(1, count))
        stored = basis.flip(1).half().float()  # as a checkpoint keeps it, so that what is measured is what is loaded
        blocks = cls(stored.contiguous().to(codes[0].device), tokens)
        return blocks, variance.flip(0).clamp_min(0).sqrt().float()

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> TokenBlocks:
        """The same blocks with their basis on `device`, in `dtype`."""
        return TokenBlocks(self.basis.to(device, dtype), self.tokens)

    def first(self, numbers: int) -> TokenBlocks:
        """The same blocks with the first `numbers` of their numbers alone."""
        return TokenBlocks(self.basis[:, :numbers].contiguous(), self.tokens)

    def of(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Numbers (B, blocks, N) of codes (B, T, C), of which the first `lengths` (B,) are tokens.

        What a row's last block lacks is filled with its last token.
        """
        B, T, C = codes.shape
        padded = -(-T // self.tokens) * self.tokens
        place = torch.arange(padded, device=codes.device).expand(B, -1)
        place = place.minimum((lengths.to(codes.device) - 1).clamp_min(0)[:, None])
        filled = codes.gather(1, place[..., None].expand(-1, -1, C))
        return filled.reshape(B, -1, self.tokens * C).to(self.basis.dtype) @ self.basis

    def codes(self, numbers: Tensor) -> Tensor:
        """Codes (..., blocks * m, C) that numbers (..., blocks, N) stand for."""
        turned = numbers.to(self.basis.dtype) @ self.basis.T
        return turned.reshape(*turned.shape[:-2], turned.shape[-2] * self.tokens, -1)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ConfigError for a tensor of another shape."""
    if tensor.shape != shape:
        raise ConfigError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
