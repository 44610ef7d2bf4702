"""What a model's folder says of an LLM that computes elsewhere: its tokenizer, how its answers end, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cmt_core.errors import ModelSourceError, one_line
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.loading import loading_alone

__all__ = ["LLMFolder", "folder_fingerprint"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class LLMFolder:
    """An LLM's folder in transformers' layout, read without its weights."""

    path: Path
    config: Any
    tokenizer: Any
    generation: Any

    @property
    def device(self) -> torch.device:
        """Where ids are wanted."""
        return _CPU

    @property
    def longest(self) -> int:
        """Tokens that the LLM can read and write together."""
        return int(self.config.get_text_config().max_position_embeddings)

    @classmethod
    def load(cls, path: Path) -> LLMFolder:
        """Raises ModelSourceError for a folder that transformers can't read."""
        try:
            config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
            if (path / "generation_config.json").is_file():
                generation = GenerationConfig.from_pretrained(path)
            else:
                generation = GenerationConfig.from_model_config(config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelSourceError(f"model folder {path} can't be loaded: {one_line(error)}") from None
        return cls(path, config, tokenizer, generation)


def folder_fingerprint(path: Path) -> str:
    """`Backbone.fingerprint(torch.bfloat16)` of a folder's LLM, tensor by tensor, without its weights in memory.

    Where the files name their tensors otherwise than the model does, it is loaded after all. Raises ModelSourceError.
    """
    try:
        names = _names_in_files(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelSourceError(f"model folder {path} can't be loaded: {one_line(error)}") from None
    if names is None:
        return Backbone.load(path, _CPU, torch.bfloat16).fingerprint(torch.bfloat16)
    digest = hashlib.sha256()
    for name, (file, stored) in sorted(names.items()):
        with safe_open(file, "pt") as tensors:
            part = tensors.get_tensor(stored).to(torch.bfloat16).contiguous()
        digest.update(name.encode())
        digest.update(part.view(torch.uint8).numpy())
    return digest.hexdigest()


def _names_in_files(path: Path) -> dict[str, tuple[Path, str]] | None:
    """Where each of the model's tensors is stored, tied ones under the name of the one that is; None when some can't be found."""
    stored: dict[str, Path] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            stored.update(dict.fromkeys(tensors.keys(), file))
    with loading_alone(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        model.tie_weights()
    owners: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in stored:
            owners[id(tensor)] = name
    found = {name: owners.get(id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()}
    if None in found.values():
        return None
    return {name: (stored[own], own) for name, own in found.items() if own is not None}
