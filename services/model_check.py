"""What can be known about a checkpoint before Ray starts and a process loads the LLM: that takes a minute, this no time.

It reads files alone, without torch. That the LLM's weights are the very ones that a checkpoint was trained for is checked
when both are loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, ModelSourceError, one_line
from cmt_core.llm.model_source import resolve_model
from services.settings import ModelSettings

__all__ = ["check_checkpoint"]

_IN_THE_PACKAGE = ("default", "auto")


def check_checkpoint(model: ModelSettings) -> None:
    """Looks at a checkpoint of one's own and at its LLM, which must have been fetched (`fetch_models`).

    Raises CheckpointError when the checkpoint is missing, damaged, or of an LLM of another shape, and ModelSourceError for an
    LLM without weights.
    """
    llm = resolve_model(model.llm, model.cache_dir.expanduser())
    shape = _shape_of_llm(llm)
    if model.checkpoint in _IN_THE_PACKAGE:
        return
    folder = Path(model.checkpoint).expanduser().absolute()
    wanted = _shape_of_checkpoint(folder)
    if shape is not None and shape != wanted:
        raise CheckpointError(
            f"checkpoint {folder} was trained for an LLM of {wanted[0]} layers with {wanted[1]} key-value heads of "
            f"{wanted[2]}, {model.llm} has {shape[0]} with {shape[1]} of {shape[2]}: set model.checkpoint or model.llm"
        )


def _shape_of_checkpoint(folder: Path) -> tuple[int, int, int]:
    """Layers, key-value heads and their width of the LLM that a checkpoint is for; its weights' file is looked at, too."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"checkpoint {folder} has no config.json: set model.checkpoint to a checkpoint's folder")
    try:
        described: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        MemoryConfig.from_dict(described["memory"])
        with safe_open(folder / "weights.safetensors", framework="numpy"):
            pass
        llm = described["llm"]
        return int(llm["layers"]), int(llm["heads"]), int(llm["head_dim"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ConfigError) as error:
        raise CheckpointError(f"checkpoint {folder} can't be read: {one_line(error)}") from None


def _shape_of_llm(folder: Path) -> tuple[int, int, int] | None:
    """The same of an LLM's folder; None where its configuration has other names."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{(folder / 'config.json').absolute()} can't be read: {one_line(error)}") from None
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelSourceError(f"model folder {folder.absolute()} has no weights (*.safetensors)")
    try:
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return config["num_hidden_layers"], config.get("num_key_value_heads") or heads, head_dim
    except (KeyError, TypeError, AttributeError):
        return None
