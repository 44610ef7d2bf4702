"""Packed memories of `kv_code` back into keys and values, wherever they are read: beside our own LLM, or in vLLM's workers.

Needs torch, numpy and safetensors alone, and no LLM.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, one_line
from cmt_core.llm.kv_shape import KVShape
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.rounding import FittedRounding, HalfCodes, Rounding, stored_rounding

__all__ = ["CodeReader", "StoredCode", "rounding_of", "stored_code"]


class CodeReader:
    """Reads memories of one code on `device`, as rows in `dtype`; raises MemoryFormatError for foreign bytes."""

    def __init__(
        self, code: KVCode, rounding: Rounding, config: MemoryConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._rounding, self._config = rounding.to(device, dtype), config
        decoder, offset = code.unscaled(dtype)  # made once, not for every question
        self._decoder, self._offset = decoder.detach(), offset.detach()

    def read(self, memories: Sequence[bytes]) -> list[Tensor]:
        """Keys before rotary and values (t, X) of each memory's t tokens."""
        codes, lengths = self.codes(memories)
        return list(torch.split(torch.addmm(self._offset, codes.to(self._decoder.dtype), self._decoder), lengths))

    def blank(self, tokens: int) -> bytes:
        """A memory of so many tokens that says nothing: all its codes are zero."""
        codes = torch.zeros(1, tokens, self._config.code_width, device=self._offset.device)
        head = tokens.to_bytes(2, "little")
        return (head + self._rounding.pack(codes, [tokens])[0]).ljust(self._config.memory_bytes, b"\0")

    def codes(self, memories: Sequence[bytes]) -> tuple[Tensor, list[int]]:
        """Codes (tokens, C) of all memories, one behind the other, and how many tokens each has."""
        lengths = [self._config.tokens_of(memory) for memory in memories]
        ends = [2 + self._config.code_bytes(length) for length in lengths]
        packed = [memory[2:end] for memory, end in zip(memories, ends, strict=True)]
        return self._rounding.unpack(packed, lengths), lengths


@dataclasses.dataclass(frozen=True, slots=True)
class StoredCode:
    """What a checkpoint's folder says that a reader of memories needs: no LLM, no encoder of texts. Prefixes are (p, X)."""

    config: MemoryConfig
    shape: KVShape
    code: KVCode
    rounding: FittedRounding
    reading_prefix: Tensor
    encoding_prefix: Tensor

    @classmethod
    def load(cls, folder: Path, bits_per_token: int | None = None) -> StoredCode:
        """Reads a `kv_code` checkpoint, whose memories keep `bits_per_token` of a token; None is the checkpoint's own number.

        Raises CheckpointError for a damaged one and for another method.
        """
        try:
            described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config = MemoryConfig.from_dict(described["memory"])
            if config.method != "kv_code":
                raise ConfigError(f"method {config.method!r} needs the LLM's own weights to be read; kv_code does not")
            shape = KVShape(*(described["llm"][name] for name in ("layers", "heads", "head_dim")))
            tensors = load_file(folder / "weights.safetensors")
            code, rounding = stored_code(config, shape, tensors)
            if bits_per_token not in (None, config.bits_per_token):
                config = dataclasses.replace(config, bits_per_token=bits_per_token)
                rounding = rounding.with_bits(bits_per_token)
            prefixes = tensors["reading_prefix"].float(), tensors["encoding_prefix"].float()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
            raise CheckpointError(f"checkpoint {folder} can't be read: {one_line(error)}") from None
        return cls(config, shape, code, rounding, *prefixes)

    def reader(self, device: torch.device, dtype: torch.dtype) -> CodeReader:
        """A reader of its memories."""
        return CodeReader(self.code.to(device), rounding_of(self.config, self.rounding), self.config, device, dtype)


def rounding_of(config: MemoryConfig, rounding: FittedRounding) -> Rounding:
    """How a configuration's memories keep their components."""
    return HalfCodes(config.code_width) if config.code_storage == "float16" else rounding


def stored_code(config: MemoryConfig, shape: KVShape, tensors: Mapping[str, Tensor]) -> tuple[KVCode, FittedRounding]:
    """The code and its rounding out of a checkpoint's tensors. Raises ConfigError for tensors of other sizes."""
    code = KVCode(shape, config.code_width)
    code.load_state_dict({name: tensors[name].float() for name in ("mean", "scale", "encoder", "decoder", "bias")})
    return code.requires_grad_(False), stored_rounding(config, tensors)
