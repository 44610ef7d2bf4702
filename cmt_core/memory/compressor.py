"""Θ (`kv_code`): one short linear code a token of all layers' keys and values.

The frozen LLM reads a window once behind the encoding prefix; every token's keys (before rotary) and values, X numbers, are
centred, scaled by layer, and projected to C components that the quantiser rounds. No token is dropped on writing: which
tokens matter is known only when the question is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_core.errors import ConfigError
from cmt_core.llm.kv_shape import KVShape

__all__ = ["KVCode"]


class KVCode(nn.Module):
    """The linear encoder E (of Θ) and decoder D (of π) between x in R^X and codes z in R^C.

    mean (X,), scale (X,) are fixed statistics; E (X, C), D (C, X) and bias (X,) are trained, from the PCA.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: KVShape, code_width: int) -> None:
        super().__init__()
        X = shape.width
        self.register_buffer("mean", torch.zeros(X))
        self.register_buffer("scale", torch.ones(X))
        self.encoder = nn.Parameter(torch.zeros(X, code_width))
        self.decoder = nn.Parameter(torch.zeros(code_width, X))
        self.bias = nn.Parameter(torch.zeros(X))

    @torch.no_grad()
    def start_from_pca(self, x: Tensor, shape: KVShape, weights: Tensor | None = None) -> Tensor:
        """Sets the statistics and the PCA of sample rows x (N, X) in fp32; returns the codes' deviations sigma (C,).

        `weights` (X,) say how much an error in each number costs; without them each layer's keys, and its values, cost alike.
        Raises ConfigError when N or X is smaller than C.
        """
        C = self.encoder.shape[1]
        if min(x.shape) < C:
            raise ConfigError(
                f"a code of {C} components needs at least {C} sample tokens and numbers a token; "
                f"there are {x.shape[0]} and {x.shape[1]}"
            )
        self.mean.copy_(x.mean(dim=0))
        normed = x - self.mean
        self.scale.copy_(_layer_scale(normed, shape) if weights is None else 1 / weights)
        normed /= self.scale
        _, _, basis = torch.svd_lowrank(normed, q=min(C + 16, *normed.shape), niter=3)
        self.encoder.copy_(basis[:, :C])
        self.decoder.copy_(basis[:, :C].T)
        return (normed @ self.encoder).std(dim=0)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., C) in fp32 of rows x (..., X); the product runs in x's type."""
        scaled = self.encoder / self.scale[:, None]  # folded into the matrix: one pass over the large input less
        return ((x - self.mean.to(x.dtype)) @ scaled.to(x.dtype)).float()

    def decode(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows x (..., X) in `dtype` that codes z (..., C) stand for."""
        scaled, offset = self.unscaled(dtype)
        return z.to(dtype) @ scaled + offset

    def unscaled(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """D (C, X) and the offset (X,) in `dtype` with the scale in them: one pass over the large output less."""
        return (self.decoder * self.scale).to(dtype), (self.mean + self.bias * self.scale).to(dtype)


def _layer_scale(centred: Tensor, shape: KVShape) -> Tensor:
    """The RMS (X,) that each layer's keys, and its values, have in centred rows (N, X)."""
    blocks = centred.view(-1, shape.layers * 2, shape.heads * shape.head_dim)
    rms = blocks.square().mean(dim=(0, 2)).sqrt().clamp_min(1e-6)  # (L * 2,)
    return rms.repeat_interleave(shape.heads * shape.head_dim)
