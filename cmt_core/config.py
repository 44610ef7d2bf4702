"""Configuration of a memory checkpoint, and the dimension letters used in all of cmt_core.

B batch (rows), T tokens of a document window, Q tokens of the questions, p tokens of a prefix, k documents in one context,
S context positions (p + k * T), D width of the LLM, L layers, H key/value heads, d width of one head,
X = L * 2 * H * d numbers of all layers' keys and values for one token, C components of a code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cmt_core.errors import ConfigError

__all__ = ["MemoryConfig"]


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """What a checkpoint's memories are; travels as config.json beside the weights.

    `bits_per_token` numbers of bits a token are shared out over `code_width` components by variance. `context_vectors` is how
    many of the k * T vectors `select` gives the LLM. Raises ConfigError on unknown keys and on values that can't work.
    """

    method: str = "kv_code"
    window_tokens: int = 256
    prefix_tokens: int = 24
    code_width: int = 320
    bits_per_token: int = 1152
    top_k: int = 1
    aggregation: str = "stack"
    context_vectors: int = 256
    format_version: int = 1

    def __post_init__(self) -> None:
        if self.method != "kv_code":
            raise ConfigError(f"method {self.method!r} is not known (kv_code is)")
        if self.aggregation not in ("stack", "select"):
            raise ConfigError(f"aggregation {self.aggregation!r} is not known (stack and select are)")
        if self.aggregation == "select" and self.context_vectors < 32:
            raise ConfigError(f"context_vectors {self.context_vectors} is less than one block of 32")
        if self.window_tokens < 32 or self.prefix_tokens < 1 or self.code_width < 1 or self.top_k < 1:
            raise ConfigError("window_tokens must be at least 32; prefix_tokens, code_width and top_k at least 1")
        if self.bits_per_token % 8:
            raise ConfigError(f"bits_per_token {self.bits_per_token} is not a whole number of bytes")
        if not 8 <= self.bits_per_token <= 8 * self.code_width:
            raise ConfigError(
                f"{self.code_width} components hold 8 to {8 * self.code_width} bits, not {self.bits_per_token}"
            )
        if self.format_version != 1:
            raise ConfigError(f"format_version {self.format_version} is not known (1 is)")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's packed code."""
        return self.bits_per_token // 8

    @property
    def memory_bytes(self) -> int:
        """Bytes of one window's packed memory: a 2-byte token count, then codes; shorter windows are padded."""
        return 2 + self.window_tokens * self.token_bytes

    def to_dict(self) -> dict[str, Any]:
        """The plain form that `from_dict` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MemoryConfig:
        """Reads the plain form; an unknown key raises ConfigError."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"unknown configuration key {sorted(unknown)[0]!r}")
        return cls(**values)
