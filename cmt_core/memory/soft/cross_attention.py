"""The block that both the compressor and the single-context aggregator are made of: cross-attention, then a small MLP."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["CrossBlock", "hidden_bias"]

_HEAD_WIDTH = 64


class CrossBlock(nn.Module):
    """Pre-norm multi-head cross-attention with residuals (Vaswani et al. 2017; latent queries as in Perceiver, Jaegle 2021).

    `start`: at `random` weights; or so that a query at first stays as it is (`keep`), or gets what it attends to (`copy`): random
    maps would bury a start that is already good (ReZero, arXiv 2003.04887).
    """

    def __init__(self, width: int, start: Literal["random", "keep", "copy"] = "random") -> None:
        super().__init__()
        self.heads = _heads(width)
        self.query_norm, self.source_norm, self.mlp_norm = (nn.RMSNorm(width, eps=1e-6) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        last = nn.Linear(2 * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), last)
        if start != "random":
            for parameter in (last.weight, last.bias, self.out.weight):
                nn.init.zeros_(parameter)
        if start == "copy":
            nn.init.eye_(self.value.weight)
            nn.init.eye_(self.out.weight)

    def forward(self, queries: Tensor, source: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, m, W) after reading source (B, S, W), and their attention (B, m, S), the mean of the heads.

        bias (B, 1 or m, S) is added to the scores; -inf hides an element, and a row that hides all is an error of the caller.
        """
        normed = self.source_norm(source)
        q, k, v = self._split(self.query(self.query_norm(queries))), self._split(self.key(normed)), self.value(normed)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias[:, None]
        attention = scores.softmax(dim=-1)  # (B, heads, m, S)
        read = (attention @ self._split(v)).transpose(1, 2).flatten(2)
        queries = queries + self.out(read)
        return queries + self.mlp(self.mlp_norm(queries)), attention.mean(dim=1)

    def _split(self, x: Tensor) -> Tensor:
        B, S, W = x.shape
        return x.view(B, S, self.heads, W // self.heads).transpose(1, 2)  # (B, heads, S, W / heads)


def _heads(width: int) -> int:
    """The largest number of heads of at least 64 that divides the width."""
    return next((n for n in range(width // _HEAD_WIDTH, 1, -1) if width % n == 0), 1)


def hidden_bias(mask: Tensor) -> Tensor:
    """Attention bias (B, 1, S) of a mask (B, S): 0 where true, -inf elsewhere."""
    return torch.zeros(mask.shape, device=mask.device, dtype=torch.float32).masked_fill(~mask.bool(), float("-inf"))[
        :, None
    ]
