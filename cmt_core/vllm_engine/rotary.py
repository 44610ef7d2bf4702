"""Turns keys of all layers to their positions, by an LLM's configuration alone: a worker's connector has no rotary module.

Angles are those of transformers (the functions are its own, but for the plain rotary), computed in float32; positions may be
negative, since attention sees differences alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Rotary"]

_NOT_TURNED = "none"
_PLAIN = ("default", "mrope")
_CHANGING = ("dynamic", "longrope")


class Rotary:
    """Every layer's rotary of an LLM with `layers` layers and heads of width `head_dim`.

    Raises ValueError for positions that change with the length of the text.
    """

    def __init__(self, config: Any, layers: int, head_dim: int, device: torch.device) -> None:
        self._kinds = _kinds(config, layers)
        self._tables = {
            kind: _frequencies(config, kind, head_dim, device) for kind in set(self._kinds) if kind != _NOT_TURNED
        }
        self._rows = {
            kind: torch.tensor([i for i, own in enumerate(self._kinds) if own == kind], device=device)
            for kind in self._tables
        }

    def turned(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys (S, L, H, d) turned to positions (S,); the result has the keys' type."""
        turned = keys.clone() if len(self._tables) != 1 or _NOT_TURNED in self._kinds else None
        for kind, (frequencies, scale) in self._tables.items():
            angles = positions.float()[:, None] * frequencies  # (S, d / 2)
            cos, sin = (f(angles)[:, None, None] * scale for f in (torch.cos, torch.sin))
            part = keys if turned is None else keys[:, self._rows[kind]]
            half = part.shape[-1] // 2
            low, high = part[..., :half].float(), part[..., half:].float()
            made = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(keys.dtype)
            if turned is None:
                return made
            turned[:, self._rows[kind]] = made
        return keys if turned is None else turned


def _kinds(config: Any, layers: int) -> list[str]:
    """Each layer's kind of rotary, as `cmt_core.llm.families.rotary_kinds` finds it in a loaded model."""
    nested = all(isinstance(value, dict) for value in _parameters(config).values())
    kinds = [str(kind) for kind in config.layer_types] if nested else [""] * layers
    turns = getattr(config, "no_rope_layers", None) or [1] * layers
    return [kind if turn else _NOT_TURNED for kind, turn in zip(kinds[:layers], turns, strict=False)]


def _parameters(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    return found


def _frequencies(config: Any, kind: str, head_dim: int, device: torch.device) -> tuple[Tensor, float]:
    """Inverse frequencies (d / 2,) and the factor of cos and sin."""
    named = _parameters(config)[kind] if kind else _parameters(config)
    rope = str(named.get("rope_type", "default"))
    if rope in _CHANGING:
        raise ValueError(f"rotary positions of kind {rope!r} change with the length of the text")
    if rope in _PLAIN:
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        return 1.0 / (float(named["rope_theta"]) ** (steps / head_dim)), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    more = {"layer_type": kind} if kind else {}
    frequencies, scale = ROPE_INIT_FUNCTIONS[rope](config, device, **more)
    return frequencies.float().to(device), float(scale)
