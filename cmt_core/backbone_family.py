"""Which LLMs can be read and written here: found out from the model's own parts and from what it computes.

A family fits when its layers have separate k_proj and v_proj and when, on a few tokens, our cache of its keys and values and
our logits are its own. So a new family needs no entry in a list, and one that computes something else can't slip through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmt_core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from cmt_core.backbone import Backbone

__all__ = ["SlidingWindows", "check_computation", "check_parts", "sliding_windows"]

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


def check_parts(model: Any) -> None:
    """Raises UnsupportedModelError unless the model has the modules that are read and written here."""
    family = str(model.config.model_type)
    body = getattr(model, "model", None)
    layers = getattr(body, "layers", None)
    rotary = getattr(body, "rotary_emb", None)
    if layers is None or rotary is None or not hasattr(model, "lm_head"):
        raise _unsupported(family, "it is no decoder-only LLM with rotary positions")
    for layer in layers:
        attention = getattr(layer, "self_attn", None)
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
            raise _unsupported(family, "its layers have no separate q_proj, k_proj and v_proj")
    kind = str(getattr(rotary, "rope_type", "default"))
    if kind in ("dynamic", "longrope"):
        raise _unsupported(family, f"its rotary positions ({kind}) change with the length of the text")


@torch.no_grad()
def check_computation(backbone: Backbone) -> None:
    """Raises UnsupportedModelError unless keys, values and logits of a few tokens are the model's own."""
    family = str(backbone.model.config.model_type)
    vocabulary = backbone.model.config.vocab_size
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=backbone.device)[None] * 7 % vocabulary
    positions = torch.arange(_PROBE_TOKENS, device=backbone.device)[None]
    try:
        nothing = torch.zeros(0, backbone.shape.width, dtype=backbone.dtype, device=backbone.device)
        x, deepest, hidden = backbone.read_at_depth(ids, torch.ones_like(ids), nothing, backbone.shape.layers)
        ours, logits = backbone.cache(x, positions), backbone.logits(hidden)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise _unsupported(family, "its keys and values have another shape") from None
    theirs = backbone.model(input_ids=ids, use_cache=True)
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
