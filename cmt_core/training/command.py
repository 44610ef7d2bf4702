"""What `cmt train` does: load the LLM, run the recipe, write the checkpoint folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cmt_core.backbone import Backbone, pick_device
from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.data.training_mix import OPEN_SOURCES
from cmt_core.errors import CheckpointError
from cmt_core.model_source import resolve_model
from cmt_core.retriever import Retriever
from cmt_core.training.recipe import Recipe, RecipeConfig

__all__ = ["train_checkpoint"]


def train_checkpoint(
    config: RecipeConfig,
    qa_file: Path,
    run: Path,
    output: Path,
    *,
    llm: str,
    retriever: str,
    cache_dir: Path,
    device: str = "auto",
    top_k: int = 1,
    aggregation: str = "select",
    start: Path | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Trains and writes the checkpoint to `output`; false when it was stopped and can go on from `run`.

    `start` is the folder of a checkpoint to train further. Raises DataError, ModelSourceError, UnsupportedModelError, or
    CheckpointError when `start` can't be read or belongs to another LLM.
    """
    cache = cache_dir.expanduser()
    target = pick_device(device)
    backbone = Backbone.load(resolve_model(llm, cache, report), target)
    before = backbone.fingerprint()
    first = _start(start, backbone) if start else None
    memory = dataclasses.replace(first.config if first else MemoryConfig(), top_k=top_k, aggregation=aggregation)
    encoder = Retriever(resolve_model(retriever, cache, report), target)
    started = time.monotonic()
    recipe = Recipe(backbone, encoder, memory, config, run, _progress(report, started), first)
    parts = recipe.run(qa_file)
    if parts is None:
        return False
    if backbone.fingerprint() != before:
        raise AssertionError("the frozen LLM has changed while training")
    training = {
        "recipe": dataclasses.asdict(config),
        "before": first.training if first else None,
        "llm": llm,
        "retriever": retriever,
        "sources": {name: source.licence for name, source in OPEN_SOURCES.items()},
    }
    checkpoint = Checkpoint(
        memory,
        backbone.shape,
        backbone.fingerprint(torch.bfloat16),
        parts.encoding_prefix.cpu(),
        parts.reading_prefix.cpu(),
        parts.code.cpu(),
        parts.quantiser.to(torch.device("cpu")),
        training,
        parts.select.cpu() if parts.select else None,
    )
    checkpoint.save(output)
    report(f"checkpoint written to {output}")
    return True


def _start(folder: Path, backbone: Backbone) -> Checkpoint:
    start = Checkpoint.load(folder)
    if start.llm_fingerprint != backbone.fingerprint(torch.bfloat16):
        raise CheckpointError(f"checkpoint {folder} was trained for another LLM, so training can't start from it")
    return start


def _progress(report: Callable[[str], None], started: float) -> Callable[[str, int, int, dict[str, float]], None]:
    def on_step(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        left_s = (steps - step - 1) * figures["seconds"]
        report(
            f"{stage} {step + 1}/{steps}  loss {figures['loss']:.3f}  {figures['seconds']:.1f} s/step  "
            f"about {left_s / 60:.0f} min left in this stage, {(time.monotonic() - started) / 60:.0f} min so far"
        )

    return on_step
