"""How a packed context travels with a request to vLLM; importable without vLLM."""

from __future__ import annotations

__all__ = ["PARAMS_KEY", "PLACEHOLDER"]

PARAMS_KEY = "cmt"
"""Under which a request's `kv_transfer_params` hold its packed context."""
PLACEHOLDER = 0
"""The token that stands for a column of a memory; any would do."""
