"""A memory checkpoint on disk: weights.safetensors, and config.json with the fingerprint of its LLM and how it was trained.

`model_id`, the checkpoint's name for what it writes, covers its weights and configuration, the LLM and the retriever:
memories are only readable with the very parts that wrote them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, one_line
from cmt_core.files import save_tensors
from cmt_core.llm.backbone import Backbone, KVShape
from cmt_core.llm.loading import loading_alone
from cmt_core.memory.code_reader import rounding_of, stored_code
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.format import KVCodeFormat, MemoryFormat, SoftTokensFormat
from cmt_core.memory.rounding import FittedRounding
from cmt_core.memory.soft.soft_memory import SoftMemory
from cmt_core.reading.aggregation import Select
from cmt_core.retrieval.looks import LookHead
from cmt_core.shipped import SHIPPED

__all__ = ["Checkpoint", "checkpoint_folder"]

_SOFT = "soft."  # before the names of SoftMemory's tensors


def checkpoint_folder(name: str) -> Path:
    """`default` is the checkpoint shipped in the package; anything else is a folder."""
    folder = SHIPPED if name == "default" else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"checkpoint {name}: {folder} has no config.json")
    return folder


@dataclass(slots=True)
class Checkpoint:
    """Everything trained, with the fingerprint of the LLM that it was trained for and how it was trained.

    A `kv_code` checkpoint has `code` and `rounding` (and `select`), a `soft_tokens` one has `soft`.
    """

    config: MemoryConfig
    shape: KVShape
    llm_fingerprint: str
    encoding_prefix: Tensor
    reading_prefix: Tensor
    code: KVCode | None
    rounding: FittedRounding | None
    training: dict[str, Any]
    select: Select | None = None
    soft: SoftMemory | None = None
    look_head: LookHead | None = None

    def format(self, backbone: Backbone) -> MemoryFormat:
        """How this checkpoint's memories are written and read, on the LLM's device."""
        if self.soft is not None:
            return SoftTokensFormat(backbone, self.soft.to(backbone.device))
        if self.code is None or self.rounding is None:
            raise CheckpointError("a checkpoint needs a code with its rounding, or soft tokens")
        rounding = rounding_of(self.config, self.rounding)
        return KVCodeFormat(backbone, self.code.to(backbone.device), rounding, self.config)

    def save(self, folder: Path) -> None:
        """Writes weights (matrices and prefixes in float16, statistics in float32) and configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._tensors(), folder / "weights.safetensors")
        described = {
            "memory": self.config.to_dict(),
            "llm": {
                "fingerprint": self.llm_fingerprint,
                "layers": self.shape.layers,
                "heads": self.shape.heads,
                "head_dim": self.shape.head_dim,
            },
            "training": self.training,
        }
        (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    def _tensors(self) -> dict[str, Tensor]:
        half = {"encoding_prefix": self.encoding_prefix, "reading_prefix": self.reading_prefix}
        full: dict[str, Tensor] = {}
        if self.code is not None and self.rounding is not None:
            half |= {"encoder": self.code.encoder.detach(), "decoder": self.code.decoder.detach()}
            full |= {"mean": self.code.mean, "scale": self.code.scale, "bias": self.code.bias.detach()}
        if self.select is not None:
            full["select.mix"] = self.select.mix.detach()
        if self.look_head is not None:
            full |= {"look.scores": self.look_head.scores, "look.states": self.look_head.states}
        if self.soft is not None:
            half |= {_SOFT + name: tensor for name, tensor in self.soft.state_dict().items()}
        tensors = {name: tensor.half().contiguous() for name, tensor in half.items()}
        tensors |= {name: tensor.float().contiguous() for name, tensor in full.items()}
        if self.rounding is not None:
            tensors |= self.rounding.tensors()
        return tensors

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Reads a checkpoint; raises CheckpointError when it is damaged or its configuration is not known."""
        try:
            described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config = MemoryConfig.from_dict(described["memory"])
            llm = described["llm"]
            shape = KVShape(llm["layers"], llm["heads"], llm["head_dim"])
            tensors = load_file(folder / "weights.safetensors")
            _check_prefixes(shape, tensors)
            with loading_alone():
                code, rounding = stored_code(config, shape, tensors) if config.method == "kv_code" else (None, None)
                select, soft = _select(config, shape, tensors), _soft(config, shape, tensors)
            return cls(
                config,
                shape,
                llm["fingerprint"],
                tensors["encoding_prefix"].float(),
                tensors["reading_prefix"].float(),
                code,
                rounding,
                described.get("training", {}),
                select,
                soft,
                _look_head(config, shape, tensors),
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
            raise CheckpointError(f"checkpoint {folder} can't be read: {one_line(error)}") from None

    @staticmethod
    def model_id(folder: Path, llm_fingerprint: str, retriever_fingerprint: str) -> str:
        """16 hex digits that name the memories written with these parts."""
        digest = hashlib.sha256()
        for name in ("config.json", "weights.safetensors"):
            digest.update((folder / name).read_bytes())
        digest.update(llm_fingerprint.encode() + retriever_fingerprint.encode())
        return digest.hexdigest()[:16]


def _soft(config: MemoryConfig, shape: KVShape, tensors: dict[str, Tensor]) -> SoftMemory | None:
    if config.method != "soft_tokens":
        return None
    soft = SoftMemory(config, shape)
    named = {name.removeprefix(_SOFT): t.float() for name, t in tensors.items() if name.startswith(_SOFT)}
    soft.load_state_dict(named)
    return soft.requires_grad_(False)


def _select(config: MemoryConfig, shape: KVShape, tensors: dict[str, Tensor]) -> Select | None:
    if config.aggregation != "select":
        return None
    mix = tensors["select.mix"]
    select = Select(shape, mix.shape[1], config.context_vectors)
    select.load_state_dict({"mix": mix})
    return select.requires_grad_(False)


def _look_head(config: MemoryConfig, shape: KVShape, tensors: dict[str, Tensor]) -> LookHead | None:
    if not config.look_layer:
        return None
    if config.look_layer > shape.layers:
        raise ConfigError(f"look_layer {config.look_layer} of an LLM with {shape.layers} layers")
    return LookHead(config.look_layer, tensors["look.scores"], tensors["look.states"])


def _check_prefixes(shape: KVShape, tensors: dict[str, Tensor]) -> None:
    for name in ("encoding_prefix", "reading_prefix"):
        if tensors[name].ndim != 2 or tensors[name].shape[1] != shape.width:
            raise ConfigError(f"{name} has shape {tuple(tensors[name].shape)}, not (p, {shape.width})")
