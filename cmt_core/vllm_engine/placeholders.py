"""How a packed context and an answer's texts travel with a request to vLLM; importable without vLLM."""

from __future__ import annotations

__all__ = ["PARAMS_KEY", "PLACEHOLDER", "SPELLED_KEY"]

PARAMS_KEY = "cmt"
"""Under which a request's `kv_transfer_params` hold its packed context."""
SPELLED_KEY = "cmt_spelled_from"
"""Under which a request's `extra_args` hold the texts of which its answer is to be a span."""
PLACEHOLDER = 0
"""The token that stands for a column of a memory; any would do."""
