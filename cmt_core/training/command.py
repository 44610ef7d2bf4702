"""What `cmt train` does: load the LLM, run the recipe, write the checkpoint folder and a plot of the run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.data.training_mix import OPEN_SOURCES
from cmt_core.errors import CheckpointError, DataError, MissingPackageError
from cmt_core.fitting.material import packaged_texts
from cmt_core.llm.backbone import Backbone, pick_device
from cmt_core.llm.model_source import resolve_model
from cmt_core.retrieval.retriever import Retriever
from cmt_core.training.chat_recipe import ChatRecipe
from cmt_core.training.distributed import first_process_first, rank
from cmt_core.training.plot import plot_run
from cmt_core.training.recipe import Recipe, TrainedParts
from cmt_core.training.recipe_config import TRAINED_MEMORY, RecipeConfig, Report

__all__ = ["train_checkpoint"]


def train_checkpoint(
    config: RecipeConfig,
    qa_file: Path | None,
    run: Path,
    output: Path,
    *,
    llm: str,
    retriever: str,
    cache_dir: Path,
    device: str = "auto",
    top_k: int = TRAINED_MEMORY.top_k,
    aggregation: str = TRAINED_MEMORY.aggregation,
    memory: dict[str, Any] | None = None,
    texts: Path | None = None,
    start: Path | None = None,
    minutes: float | None = None,
    encoder: Retriever | None = None,
    report: Callable[[str], None] = print,
    on_step: Report | None = None,
) -> bool:
    """Trains and writes the checkpoint to `output`; false when it was stopped and can go on from `run`.

    `memory` are fields of MemoryConfig other than its defaults (the start's), `texts` plain text for `text_steps`, `start` the
    folder of a checkpoint to train further. From a start that is read in the LLM's chat template only the code is trained, on
    `qa_file`'s questions or, without one, on the LLM's own about `texts`; `top_k` and `aggregation` stay its own. `on_step`
    replaces the lines that `report` gets at each step. `minutes` after the call a run behind a learned prefix is stopped, and the
    memory as it stands is written all the same. `encoder` finds neighbours in the place of `retriever`. Where torch.distributed
    is set up, all processes train together and the first one writes. Raises DataError, ConfigError, ModelSourceError,
    UnsupportedModelError, or CheckpointError when `start` can't be read or belongs to another LLM.
    """
    started = time.monotonic()
    cache = cache_dir.expanduser()
    target = pick_device(device)
    with first_process_first():
        llm_folder = resolve_model(llm, cache, report)
        encoder = encoder or Retriever(resolve_model(retriever, cache, report), target)
    backbone = Backbone.load(llm_folder, target)
    before = backbone.fingerprint()
    first = _start(start, backbone) if start else None
    in_chat = first is not None and first.config.reading == "chat"
    kept = {} if in_chat else {"top_k": top_k, "aggregation": aggregation}
    chosen = _memory(first, backbone, kept | (memory or {}))
    step = on_step or _progress(report, started)
    until = None if minutes is None else started + 60 * minutes
    if first is not None and in_chat:
        parts = done = ChatRecipe(backbone, encoder, chosen, config, run, step, first).run(qa_file, texts)
    elif qa_file is None:
        raise DataError("training a learned prefix needs a set of questions")
    else:
        recipe = Recipe(backbone, encoder, chosen, config, run, step, first, until)
        done = recipe.run(qa_file, texts)
        parts = done or (recipe.so_far if until is not None else None)
    if parts is None:
        return False
    if backbone.fingerprint() != before:
        raise AssertionError("the frozen LLM has changed while training")
    training = {
        "recipe": dataclasses.asdict(config),
        **({} if done is not None else {"finished": False}),
        "before": first.training if first else None,
        "llm": llm,
        "retriever": retriever,
        "sources": {name: source.licence for name, source in OPEN_SOURCES.items()}
        if config.sources == "open" and not in_chat
        else {(qa_file or texts or packaged_texts()).name: "as its file says"},
    }
    if rank() == 0:
        _checkpoint(chosen, backbone, parts, training).save(output)
        report(f"checkpoint written to {output}")
        _plot(run, report)
    return done is not None


def _memory(start: Checkpoint | None, backbone: Backbone, values: dict[str, Any]) -> MemoryConfig:
    """The start's configuration (or the default) with `values`; soft tokens have the LLM's width.

    A start's look is not taken over: it was trained behind other memories (look_training.py trains one anew).
    """
    base = dataclasses.replace(start.config, look_layer=0) if start else TRAINED_MEMORY
    if values.get("method", base.method) == "soft_tokens":
        values = {"memory_width": backbone.width} | values
    return dataclasses.replace(base, **values)


def _checkpoint(memory: MemoryConfig, backbone: Backbone, parts: TrainedParts, training: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        memory,
        backbone.shape,
        backbone.fingerprint(torch.bfloat16),
        parts.encoding_prefix.cpu(),
        parts.reading_prefix.cpu(),
        parts.code.cpu() if parts.code else None,
        parts.rounding.to(torch.device("cpu")) if parts.rounding else None,
        training,
        parts.select.cpu() if parts.select else None,
        parts.soft.cpu() if parts.soft else None,
    )


def _plot(run: Path, report: Callable[[str], None]) -> None:
    try:
        plot_run(run, run / "losses.png")
    except MissingPackageError as error:
        report(str(error))
    else:
        report(f"losses drawn in {run / 'losses.png'}")


def _start(folder: Path, backbone: Backbone) -> Checkpoint:
    start = Checkpoint.load(folder)
    if start.llm_fingerprint != backbone.fingerprint(torch.bfloat16):
        raise CheckpointError(f"checkpoint {folder} was trained for another LLM, so training can't start from it")
    return start


def _progress(report: Callable[[str], None], started: float) -> Callable[[str, int, int, dict[str, float]], None]:
    def on_step(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        if "loss" not in figures:  # nothing is trained yet
            report(f"{stage} {step + 1}/{steps}  {(time.monotonic() - started) / 60:.0f} min so far")
            return
        left_s = (steps - step - 1) * figures["seconds"]
        report(
            f"{stage} {step + 1}/{steps}  loss {figures['loss']:.3f}  {figures['seconds']:.1f} s/step  "
            f"about {left_s / 60:.0f} min left in this stage, {(time.monotonic() - started) / 60:.0f} min so far"
        )

    return on_step
