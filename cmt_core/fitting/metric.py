"""How much each of a token's X numbers matters to what the LLM answers: the RMS of the answer's gradient with respect to it.

A code spends its numbers and bits where they move the answer, not where keys and values vary most: the loss that coding adds
falls by half at the same bytes (docs/log.md). The gradient is that of the answer's log-loss with respect to the exact keys
(before rotary) and values of the document's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_core.fitting.fit_config import Progress
from cmt_core.fitting.reader import ChatReader, Item, batches
from cmt_core.llm.backbone import KVShape

__all__ = ["GradientMetric", "gradient_weights"]

_LEAST = 1e-3  # of the mean weight: what no question asked for still gets a number


def gradient_weights(reader: ChatReader, items: Sequence[Item], progress: Progress, stage: str) -> Tensor:
    """Weights (X,) of mean 1 from items with targets; every question counts alike, however sure its answer is."""
    found, done = GradientMetric(reader.backbone.shape), 0
    for part in batches(items):
        leaves = [item.exact.to(reader.backbone.device, reader.backbone.dtype, copy=True) for item in part]
        for leaf in leaves:
            leaf.requires_grad_(True)
        loss = reader.nats(reader.context(leaves), part).sum()
        for gradient in torch.autograd.grad(loss, leaves):
            found.add(gradient)
        done += len(part)
        progress(stage, done, len(items))
    return found.weights


class GradientMetric:
    """Gathers the gradients of one question after the other."""

    def __init__(self, shape: KVShape) -> None:
        self._shape = shape
        self._squares, self._rows = torch.zeros(shape.width, dtype=torch.float32), 0

    def add(self, gradient: Tensor) -> None:
        """Takes the gradient of one question's log-loss, (tokens of its document, X)."""
        own = gradient.float().cpu()
        self._squares += (own / own.square().mean().sqrt().clamp_min(1e-12)).square().sum(dim=0)
        self._rows += len(own)

    @property
    def weights(self) -> Tensor:
        """Weights (X,) of mean 1."""
        weights = over_rotary_pairs(self._squares / self._rows, self._shape).sqrt()
        return (weights / weights.mean()).clamp_min(_LEAST)


def over_rotary_pairs(squares: Tensor, shape: KVShape) -> Tensor:
    """Squares (X,) with the two numbers of a key that rotary turns into each other averaged: which is which depends on place."""
    blocks = squares.view(shape.layers, 2, shape.heads, 2, shape.head_dim // 2).clone()
    blocks[:, 0] = blocks[:, 0].mean(dim=2, keepdim=True)
    return blocks.flatten()
