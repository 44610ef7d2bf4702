"""Stores the memories of a checkpoint with another number of bits a token than it was trained for."""

from __future__ import annotations

import copy
import dataclasses

from cmt_core.errors import ConfigError
from cmt_core.memory.decoded import DecodedMemories
from cmt_core.memory.format import KVCodeFormat
from cmt_core.memory.rounding import FittedRounding, HalfCodes
from cmt_core.model import CMT

__all__ = ["FLOAT16", "kv_code_format", "with_bits"]

FLOAT16 = 0
"""Stands for unrounded components in float16, among numbers of bits."""


def with_bits(model: CMT, bits: int, decoded_bytes: int = 0) -> CMT:
    """The same `kv_code` checkpoint writing and reading memories of `bits` bits a token (or FLOAT16).

    The code stays as it was trained; only the rounding of its components changes, by the same reverse water-filling. Its
    `model_id` names the bits, so that a bank never mixes memories of two roundings. `decoded_bytes` of decoded memories are kept.
    Raises ConfigError for another method, or a number of bits that the components can't hold.
    """
    written = kv_code_format(model)
    if not isinstance(written.rounding, FittedRounding):
        raise ConfigError("memories of a float16 checkpoint can't be stored with another number of bits")
    changed = {"code_storage": "float16", "block_tokens": 1} if bits == FLOAT16 else {"bits_per_token": bits}
    config = dataclasses.replace(model.config, **changed)
    rounding = HalfCodes(config.code_width) if bits == FLOAT16 else written.rounding.with_bits(bits)
    other = copy.copy(model)
    other.config, other.memory_bytes, other.model_id = config, config.memory_bytes, f"{model.model_id}-{bits}"
    other.format = KVCodeFormat(model.backbone, written.code, rounding, config)
    other.decoded = DecodedMemories(decoded_bytes, model.config.window_tokens)
    return other


def kv_code_format(model: CMT) -> KVCodeFormat:
    """The format of a `kv_code` checkpoint's memories. Raises ConfigError for another method."""
    if not isinstance(model.format, KVCodeFormat):
        raise ConfigError("only memories of kv_code can be stored with another number of bits")
    return model.format
