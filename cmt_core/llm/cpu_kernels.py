"""How a CPU reads the frozen LLM faster: weights packed once for its matrix kernels, attention by groups of query heads, layers
in few operations (lean_layers.py), memory that is used again.

All compute what the model computes. Packing is what PyTorch's compiler does when it freezes a model (oneDNN's own layout,
instead of a conversion in every call); grouping lets the query heads that share a key/value head be rows of one product over it.
docs/decisions/0007-weights-are-packed-on-a-cpu.md has the figures.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cmt_core.llm.lean_layers import LeanLayers, packs

__all__ = ["grouped_masks", "is_grouped", "keep_freed_memory", "pack", "tune_for_cpu"]

_GROUPED = "cmt_grouped"
# M_MMAP_THRESHOLD (at its largest), M_TRIM_THRESHOLD and M_TOP_PAD of mallopt(3), bytes
_MALLOC = {-3: 32 * 2**20, -1: 2**30, -2: 64 * 2**20}


def tune_for_cpu(model: Any) -> LeanLayers | None:
    """Packs a loaded model's bfloat16 matrices (its own stay, for gradients and the fingerprint) and groups its heads.

    Gives the model's layers in few large operations where they are understood.
    """
    keep_freed_memory()
    lean = LeanLayers.of(model)
    pack(model, without=lean.fused if lean else ())
    AttentionInterface.register(_GROUPED, _grouped_attention)
    AttentionMaskInterface.register(_GROUPED, sdpa_mask)
    model.set_attn_implementation(_GROUPED)
    return lean


def pack(model: Any, without: Sequence[nn.Module] = ()) -> None:
    """Packs the bfloat16 matrices that are not packed yet, apart from the layers of `without`."""
    left_out = set(map(id, without))
    for module in model.modules():
        if id(module) in left_out or isinstance(module.forward, _PackedLinear):
            continue
        if type(module) is not nn.Linear or not packs(module.weight.dtype):
            continue
        # on the instance: a module of another class would change the names that the fingerprint goes by
        packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
        module.forward = _PackedLinear(module, packed)  # type: ignore[assignment, method-assign]


@functools.cache
def keep_freed_memory() -> None:
    """Lets glibc keep what this process frees, instead of giving it back and asking for the same again.

    A layer's intermediate results are megabytes each: without this every one of them is mapped anew, page by page, which took
    a third of a layer's elementwise time (docs/decisions/0090). Whoever sets malloc's variables has decided already.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is not None:
        for option, value in _MALLOC.items():
            mallopt(option, value)


def is_grouped(model: Any) -> bool:
    """Whether a model's attention goes by groups of heads."""
    return bool(model.config._attn_implementation == _GROUPED)


def grouped_masks(masks: Tensor | dict[str, Tensor], groups: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """What is added to the scores (B, 1, groups * Q, S) where masks (B, 1, Q, S) say what is seen; once for all layers."""
    if isinstance(masks, dict):
        return {kind: _added(mask, groups, dtype) for kind, mask in masks.items()}
    return _added(masks, groups, dtype)


def _added(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    return added.repeat(1, 1, groups, 1)


class _PackedLinear:
    """A linear layer's product on packed weights; on its own ones where a gradient is wanted or they have changed since.

    A copy of a model is made to be changed, and stays unpacked.
    """

    def __init__(self, module: nn.Linear, packed: Tensor | None) -> None:
        self._module, self._packed = module, packed
        self._version = -1 if packed is None else module.weight._version

    def __deepcopy__(self, memo: dict[int, Any]) -> _PackedLinear:
        return _PackedLinear(copy.deepcopy(self._module, memo), None)

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self._module.weight, self._module.bias
        learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if learning or weight._version != self._version:
            return functional.linear(x, weight, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return product


def _grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of queries (B, heads, Q, d) over keys and values (B, H, S, d); the mask has heads / H * Q rows, or Q."""
    B, heads, Q, d = query.shape
    H = key.shape[1]
    if attention_mask is None or attention_mask.shape[1] != 1:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return out, None
    rows = heads // H * Q
    if attention_mask.shape[2] != rows:
        attention_mask = attention_mask.repeat(1, 1, heads // H, 1)
    grouped = query.reshape(B, H, rows, d)
    attended = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return attended.view(B, heads, Q, d).transpose(1, 2).contiguous(), None
