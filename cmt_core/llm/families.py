"""Which LLMs can be read and written here: found out from the model's own parts and from what it computes.

A family fits when its layers have separate k_proj and v_proj and when, on a few tokens, our cache of its keys and values and
our logits are its own. So a new family needs no entry in a list, and one that computes something else can't slip through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmt_core.errors import UnsupportedModelError
from cmt_core.llm.placed_cache import PlacedCache

__all__ = [
    "NO_ROTARY",
    "ProbeResult",
    "SlidingWindows",
    "check_computation",
    "check_parts",
    "norms_heads_first",
    "rotary_kinds",
    "sliding_windows",
]

NO_ROTARY = "none"
"""The kind of a layer whose keys are not turned: its memories have no place."""
_PROBE_TOKENS = 6
_TOLERANCE = 0.05  # of the true tensor's length: bfloat16 rounds to 1%, another rotary is off by the whole


@dataclass(frozen=True, slots=True)
class SlidingWindows:
    """A family in which all layers (`mixed` false) or some of them see only the `size` latest positions."""

    size: int
    mixed: bool

    def masks(self, attend: Tensor, positions: Tensor, columns: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask (B, 1, Q, S) that transformers expects of tokens at (B, Q) over columns at (B, S), or one a layer type."""
        near = positions[:, :, None] - columns[:, None, :] < self.size
        windowed = attend & near[:, None]
        return {"full_attention": attend, "sliding_attention": windowed} if self.mixed else windowed


def sliding_windows(config: Any) -> SlidingWindows | None:
    """The sliding window of a transformers configuration; None where every layer sees everything."""
    size = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not size or kinds == {"full_attention"} or (not kinds and getattr(config, "use_sliding_window", True) is False):
        return None
    return SlidingWindows(int(size), mixed=bool(kinds))


def rotary_kinds(model: Any) -> list[str]:
    """Each layer's rotary: a kind that the model's rotary module is asked for, "" where all share one, or NO_ROTARY.

    Gemma 3 turns sliding and full layers by different angles; SmolLM3 leaves every fourth layer unturned.
    """
    by_kind = "layer_type" in inspect.signature(model.model.rotary_emb.forward).parameters
    kinds = model.config.layer_types if by_kind else [""] * len(model.model.layers)
    turned = [getattr(layer.self_attn, "use_rope", True) for layer in model.model.layers]
    return [kind if turns else NO_ROTARY for kind, turns in zip(kinds, turned, strict=True)]


@torch.no_grad()
def norms_heads_first(model: Any) -> bool:
    """Whether the norm of keys gets them as (B, H, T, d), as in Gemma 3, instead of (B, T, H, d): seen on a few tokens."""
    norm = getattr(model.model.layers[0].self_attn, "k_norm", None)
    if norm is None:
        return False
    shapes: list[tuple[int, ...]] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    tokens = int(model.config.num_key_value_heads) + 1  # another number than heads, so that the two are told apart
    try:
        model.model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        handle.remove()
    return len(shapes[0]) == 4 and shapes[0][2] == tokens


def check_parts(model: Any) -> None:
    """Raises UnsupportedModelError unless the model has the modules that are read and written here."""
    family = str(model.config.model_type)
    if recurrent := _recurrent_layers(model):
        raise _unsupported(
            family, f"it has recurrent layers ({recurrent}): what they keep of a document is not in its keys and values"
        )
    body = getattr(model, "model", None)
    layers = getattr(body, "layers", None)
    rotary = getattr(body, "rotary_emb", None)
    if layers is None or rotary is None or not hasattr(model, "lm_head"):
        raise _unsupported(family, "it is no decoder-only LLM with rotary positions")
    for layer in layers:
        attention = getattr(layer, "self_attn", None)
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
            raise _unsupported(family, "its layers have no separate q_proj, k_proj and v_proj")
    kinds = getattr(rotary, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, dict) else [str(kinds)]:
        if kind in ("dynamic", "longrope"):
            raise _unsupported(family, f"its rotary positions ({kind}) change with the length of the text")


def _recurrent_layers(model: Any) -> str:
    """The class of the layers that carry a state from token to token (state spaces, linear attention, convolutions), if any."""
    for module in model.modules():
        if hasattr(module, "A_log") or any(isinstance(child, nn.Conv1d) for child in module.children()):
            return type(module).__name__
    return ""


class ProbeResult(NamedTuple):
    """What is computed here of T tokens: their placed cache, the last hidden states twice, as captured at depth L and as the
    layers return them (1, T, D), and next-token logits (1, T, V)."""

    cache: PlacedCache
    deepest: Tensor
    hidden: Tensor
    logits: Tensor


@torch.no_grad()
def check_computation(model: Any, compute: Callable[[Tensor], ProbeResult]) -> None:
    """Raises UnsupportedModelError unless what `compute` makes of a few tokens' ids (1, T) is the model's own."""
    family = str(model.config.model_type)
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=model.device)[None] * 7 % model.config.vocab_size
    try:
        ours, deepest, hidden, logits = compute(ids)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise _unsupported(family, "its keys and values have another shape") from None
    theirs = model(input_ids=ids, use_cache=True)
    pairs = [(logits, theirs.logits), (deepest, hidden)]
    for mine, own in zip(ours.layers, theirs.past_key_values.layers, strict=True):
        pairs += [(mine.keys, own.keys), (mine.values, own.values)]
    if not all(_close(mine, own) for mine, own in pairs):
        raise _unsupported(family, "it computes keys, values or logits in another way")


def _close(mine: Tensor, own: Tensor) -> bool:
    if mine.shape != own.shape:
        return False
    return bool((mine - own).float().norm() <= _TOLERANCE * own.float().norm() + 1e-6)


def _unsupported(family: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"LLM family {family!r} is not supported: {reason}")
