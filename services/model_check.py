"""What can be known about a checkpoint before Ray starts and a process loads the LLM: that takes a minute, this a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cmt_core.errors import CheckpointError, ModelSourceError
from cmt_core.model_source import resolve_model
from services.settings import ModelSettings

if TYPE_CHECKING:
    from cmt_core.checkpoint import Checkpoint

__all__ = ["check_checkpoint"]


def check_checkpoint(model: ModelSettings) -> None:
    """Reads a checkpoint that is not the shipped one; its LLM must have been fetched (`fetch_models`).

    Raises CheckpointError when it is missing, damaged, or of an LLM of another shape, and ModelSourceError for an LLM without
    weights. That the weights are the very ones it was trained for is checked when they are loaded.
    """
    shipped = ModelSettings()
    if model.checkpoint in ("default", "auto") and model.llm == shipped.llm:
        return
    llm = resolve_model(model.llm, model.cache_dir.expanduser())
    shape = _shape(llm)
    if model.checkpoint == "auto":
        return
    from cmt_core.checkpoint import Checkpoint, checkpoint_folder  # it loads torch

    folder = checkpoint_folder(model.checkpoint)
    wanted = _wanted(Checkpoint.load(folder))
    if shape is not None and shape != wanted:
        raise CheckpointError(
            f"checkpoint {folder.absolute()} was trained for an LLM of {wanted[0]} layers with {wanted[1]} key-value heads of "
            f"{wanted[2]}, {model.llm} has {shape[0]} with {shape[1]} of {shape[2]}: set model.checkpoint or model.llm"
        )


def _wanted(checkpoint: Checkpoint) -> tuple[int, int, int]:
    shape = checkpoint.shape
    return shape.layers, shape.heads, shape.head_dim


def _shape(llm: Path) -> tuple[int, int, int] | None:
    """Layers, key-value heads and their width, None where the configuration has them under other names."""
    try:
        config = json.loads((llm / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{(llm / 'config.json').absolute()} can't be read: {error}") from None
    if not any(llm.glob("*.safetensors")) and not any(llm.glob("*.bin")):
        raise ModelSourceError(f"model folder {llm.absolute()} has no weights (*.safetensors)")
    try:
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return config["num_hidden_layers"], config.get("num_key_value_heads") or heads, head_dim
    except (KeyError, TypeError, AttributeError):
        return None
