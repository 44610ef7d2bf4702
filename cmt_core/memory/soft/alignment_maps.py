"""π of soft tokens: maps from a memory vector in R^D to the keys and values x in R^X that the frozen LLM reads.

`low_rank` moves the vector by a low-rank map to each layer's own input and lets that layer's frozen norm and projections
make keys and values of it. `linear` is free: one matrix to all layers. Both start at the least-squares fit of what the LLM
has at real tokens, from the hidden states that Θ reads. Where they stand is reading/alignment.py's business.
Source: the alignment of CMT (arXiv 2412.07393, section 3), whose form is not public; the low-rank form follows LoRA
(arXiv 2106.09685).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmt_core.llm.backbone import Backbone, KVShape

__all__ = ["LinearMaps", "LowRankMaps"]

_RIDGE = 1e-3


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
    def start_from(self, source: Tensor, inputs: Tensor) -> None:
        """Starts at the best map of this form from hidden states source (N, D) of N tokens to each layer's inputs (N, L, D).

        Reduced-rank regression (Izenman 1975). Inputs are fitted at unit RMS, which the layers' norms make of them anyway.
        """
        fit = _Fit(F.rms_norm(source, source.shape[-1:]))
        same = torch.eye(source.shape[1], device=source.device)
        for layer in range(inputs.shape[1]):
            target = F.rms_norm(inputs[:, layer], inputs.shape[-1:])
            scale = fit.scale(target)
            down, up = fit.low_rank(fit.weight(target) / scale - same, self.down.shape[-1])
            self.down[layer], self.up[layer], self.scale[layer] = down, up, scale
            self.bias[layer] = target.mean(dim=0) - fit.mean @ (scale * (same + down @ up))


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
    def start_from(self, source: Tensor, rows: Tensor) -> None:
        """Starts at the least-squares map from hidden states source (N, D) of N tokens to their rows (N, X)."""
        fit = _Fit(F.rms_norm(source, source.shape[-1:]))
        self.weight.copy_(fit.weight(rows))
        self.bias.copy_(rows.mean(dim=0) - fit.mean @ self.weight)


class _Fit:
    """Least squares from unit-RMS vectors (N, D) to any targets (N, Y), with a little ridge for small N."""

    def __init__(self, source: Tensor) -> None:
        self.mean = source.mean(dim=0)
        self._centred = source - self.mean
        covariance = (self._centred.T @ self._centred / len(source)).double()
        values, vectors = torch.linalg.eigh(covariance)
        self._values, self._vectors = values.clamp_min(_RIDGE * float(values.mean())), vectors

    def weight(self, target: Tensor) -> Tensor:
        """W (D, Y) of target = (source - mean) W + its own mean."""
        crossed = (self._centred.T @ (target - target.mean(dim=0)) / len(target)).double()
        solved: Tensor = self._vectors / self._values @ (self._vectors.T @ crossed)
        return solved.float()

    def scale(self, target: Tensor) -> Tensor:
        """The best single factor from source to a target (N, D) of the same width."""
        centred = target - target.mean(dim=0)
        scale: Tensor = (self._centred * centred).sum() / self._centred.square().sum()
        return scale

    def low_rank(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A (D, rank), B (rank, Y) whose product is closest to W where the source has its variance."""
        root = self._values.sqrt()
        U, S, Vh = torch.linalg.svd(root[:, None] * (self._vectors.T @ weight.double()), full_matrices=False)
        return (self._vectors @ (U[:, :rank] * S[:rank] / root[:, None])).float(), Vh[:rank].float()
