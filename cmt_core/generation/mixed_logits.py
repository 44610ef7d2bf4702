"""The memory-aware mix of next-token logits, one formula for training and decoding: CMT (arXiv 2412.07393) section 3."""

from __future__ import annotations

from torch import Tensor

__all__ = ["memory_aware"]


def memory_aware(with_memory: Tensor, without: Tensor, weight: float) -> Tensor:
    """Logits (..., V) that mix those with and without the memory: w * with + (1 - w) * without.

    MemoryConfig.decoding_weight gives w of both of the paper's forms; training and decoding use this one formula.
    """
    return weight * with_memory.float() + (1 - weight) * without.float()
