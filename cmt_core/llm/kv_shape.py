"""How many keys and values an LLM has for a token; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KVShape"]


@dataclass(frozen=True, slots=True)
class KVShape:
    """L layers, H key/value heads of width d."""

    layers: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """X, the numbers of all layers' keys and values for one token."""
        return self.layers * 2 * self.heads * self.head_dim
