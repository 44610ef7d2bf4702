"""Floating-point operations of reading a window, from the model's shape, checked against PyTorch's own count."""

from __future__ import annotations

from typing import Any

__all__ = ["checked_window_flops", "window_flops"]

_TOLERANCE = 0.01


def window_flops(config: Any, tokens: int, prefix: int, code_width: int) -> float:
    """A multiplication and an addition are two: products of all layers, attention over prefix and window, encoding.

    `config` is transformers' of the LLM. Attention counts every pair, as the kernels compute it; `code_width` 0 leaves the
    encoding out.
    """
    D, layers = config.hidden_size, config.num_hidden_layers
    d = getattr(config, "head_dim", None) or D // config.num_attention_heads
    heads, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    products = D * (heads + 2 * kv) + heads * D + 3 * D * config.intermediate_size
    attention = 2 * heads * (prefix + tokens)
    return 2.0 * tokens * (layers * (products + attention) + layers * 2 * kv * code_width)


def checked_window_flops(config: Any, tokens: int, prefix: int, code_width: int) -> float:
    """The same; raises RuntimeError when PyTorch counts otherwise on this shape (in a model without numbers, in no time).

    What runs here can't be counted itself: PyTorch's counter does not see packed products.
    """
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    with torch.device("meta"):  # a copy: the choice of attention is written into the configuration
        model = AutoModel.from_config(copy.deepcopy(config), attn_implementation="sdpa", dtype=torch.float32).eval()
        ids = torch.zeros(1, tokens, dtype=torch.long)
        seen = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)  # given, since making one would look at numbers
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=seen, position_ids=ids, use_cache=False)
    counted, expected = counter.get_total_flops(), window_flops(config, tokens, 0, 0)
    if abs(counted - expected) > _TOLERANCE * expected:
        raise RuntimeError(f"{expected:.4g} operations by shape, {counted:.4g} by PyTorch: one of the counts is wrong")
    return window_flops(config, tokens, prefix, code_width)
