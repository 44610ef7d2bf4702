"""Sizes of a fit, as `cmt fit` reaches them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cmt_core.config import MemoryConfig
from cmt_core.errors import ConfigError

__all__ = ["DEFAULT_FIT", "FitConfig", "Progress"]

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""

_BITS_PER_COMPONENT = 2.25  # what 512 components of 1152 bits have (docs/decisions/0172)
_STEP = 16
_LEAST_BYTES = 2  # a coder's own


@dataclass(frozen=True, slots=True)
class FitConfig:
    """What is read for a fit, and what it makes.

    `token_bytes` are the bytes of a token's code, of which `block_tokens` are coded together. `windows` are read for the code's
    directions, `questions` for the gradient's metric; `held_out` windows more are for calibration and the fit's own fidelity.
    """

    token_bytes: int = 288
    windows: int = 96
    questions: int = 64
    held_out: int = 24
    window_tokens: int = 256
    top_k: int = 4
    block_tokens: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.token_bytes < _LEAST_BYTES:
            raise ConfigError(f"a code of {self.token_bytes} bytes a token holds nothing: at least {_LEAST_BYTES}")
        if min(self.windows, self.questions, self.held_out) < 2:
            raise ConfigError("a fit needs at least 2 windows, questions and held-out windows")

    def memory(self, width: int, head_tokens: int, instruction: str, **calibrated: Any) -> MemoryConfig:
        """The configuration of the checkpoint of an LLM with `width` numbers a token."""
        bits = 8 * self.token_bytes
        components = max(_STEP, round(bits / _BITS_PER_COMPONENT / _STEP) * _STEP)
        if components > width:
            raise ConfigError(
                f"{self.token_bytes} bytes a token want {components} components, and this LLM has {width} numbers a token"
            )
        config = MemoryConfig(
            window_tokens=self.window_tokens,
            prefix_tokens=head_tokens,
            code_width=components,
            bits_per_token=bits,
            top_k=self.top_k,
            aggregation="select",
            context_vectors=2 * self.window_tokens,
            block_tokens=self.block_tokens,
            code_storage="entropy",
            reading="chat",
            instruction=instruction,
        )
        return dataclasses.replace(config, **calibrated)


DEFAULT_FIT = FitConfig()
