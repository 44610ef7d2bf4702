"""Writes a GGUF's weights as bfloat16 safetensors, one tensor at a time: the whole model is never in memory.

Reading GGUF takes a minute, reading safetensors seconds, so it is done once. Names and layouts are transformers' own mapping.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmt_core.llm.loading import loading_alone

__all__ = ["convert_gguf"]

_SHARD_BYTES = 512 * 2**20
_INDEX = "model.safetensors.index.json"


def convert_gguf(gguf: Path, target: Path) -> None:
    """Makes `target` a model folder in transformers' layout: configuration, tokenizer and weights of the file `gguf`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    target.mkdir(parents=True)
    with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader has a progress bar of its own
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    parsed = load_gguf_checkpoint(str(gguf), return_tensors=False)
    config = AutoConfig.for_model(**parsed["config"])
    with torch.device("meta"), loading_alone():
        model = AutoModelForCausalLM.from_config(config)
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _write_shards(_tensors(gguf, model, parsed), target)


def _tensors(gguf: Path, model: torch.nn.Module, parsed: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Name and bfloat16 weights of every tensor of the file, in transformers' layout; `parsed` is what else the file holds."""
    import numpy as np
    from gguf import GGUFReader, dequantize
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    reader = GGUFReader(str(gguf))
    architecture = parsed["config"]["model_type"]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parsed["config"])
    names = get_gguf_hf_weights_map(model, processor)
    for tensor in reader.tensors:
        made = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters=parsed,
        )
        if made.name in names:
            yield (
                names[made.name],
                torch.from_numpy(np.require(made.weights, requirements=["C", "W"])).to(torch.bfloat16),
            )


def _write_shards(tensors: Iterator[tuple[str, Tensor]], target: Path) -> None:
    """Files of about `_SHARD_BYTES` with transformers' index of them, or one file without an index."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    total, held, held_bytes = 0, dict[str, Tensor](), 0

    def flush() -> None:
        nonlocal held, held_bytes
        save_file(held, target / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(held))
        held, held_bytes = {}, 0

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > _SHARD_BYTES:
            flush()
        held[name] = tensor
        held_bytes, total = held_bytes + tensor.nbytes, total + tensor.nbytes
    flush()
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (target / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for number, file in enumerate(files):
        (target / f"{number}.part").rename(target / file)
