"""π of soft tokens: maps from a memory vector in R^D to the keys and values x in R^X that the frozen LLM reads.

`low_rank` moves the vector by a low-rank map to each layer's own input and lets that layer's frozen norm and projections
make keys and values of it. `linear` is free: one matrix to all layers. Where they stand is alignment.py's business.
Source: the alignment of CMT (arXiv 2412.07393, section 3), whose form is not public; the low-rank form follows LoRA
(arXiv 2106.09685).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_core.backbone import Backbone, KVShape

__all__ = ["LinearMaps", "LowRankMaps"]


class LowRankMaps(nn.Module):
    """h_l = s_l (v + v A_l B_l) + b_l for each layer l, with A (L, D, r), B (L, r, D) from zero, s (L, 1), b (L, D)."""

    def __init__(self, shape: KVShape, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(shape.layers, width, rank) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(shape.layers, rank, width))
        self.scale = nn.Parameter(torch.ones(shape.layers, 1))
        self.bias = nn.Parameter(torch.zeros(shape.layers, width))

    def forward(self, backbone: Backbone, memory: Tensor) -> Tensor:
        """Rows x (..., X) in the LLM's type of memory vectors (..., D)."""
        low = torch.einsum("...d,ldr->...lr", memory.float(), self.down)
        moved = memory.float()[..., None, :] + torch.einsum("...lr,lrd->...ld", low, self.up)
        return backbone.project((self.scale * moved + self.bias).to(backbone.dtype))

    @torch.no_grad()
    def start_from_inputs(self, inputs: Tensor) -> None:
        """Starts at the mean and spread of real inputs (N, L, D): a vector of the last layer is no input of the first."""
        mean = inputs.mean(dim=0)
        self.bias.copy_(mean)
        self.scale.copy_((inputs - mean).square().mean(dim=(0, 2)).sqrt()[:, None])


class LinearMaps(nn.Module):
    """x = v W + b with W (D, X), b (X,)."""

    def __init__(self, shape: KVShape, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, shape.width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(shape.width))

    def forward(self, backbone: Backbone, memory: Tensor) -> Tensor:
        """Rows x (..., X) in the LLM's type of memory vectors (..., D)."""
        return memory.to(backbone.dtype) @ self.weight.to(backbone.dtype) + self.bias.to(backbone.dtype)

    @torch.no_grad()
    def start_from_rows(self, rows: Tensor) -> None:
        """Starts at the mean and spread of real rows (N, X): keys have a few components far larger than the rest."""
        self.bias.copy_(rows.mean(dim=0))
        self.weight.mul_(rows.std(dim=0))
