"""`cmt train`: a memory checkpoint for the frozen LLM, on this machine or on several workers of a Ray cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_core.training.recipe_config import RECIPE, TRAINED_MEMORY, RecipeConfig
from services.commands.options import Config, RayAddress, progress, read_settings
from services.commands.output_folder import check_output
from services.errors import SettingsError
from services.interrupts import left_to_finish

if TYPE_CHECKING:
    from services.settings import Settings

__all__ = ["train", "training_set"]

_MEMORY = "Memory and recipe"
_DATASET = "qa_train.jsonl.gz"
_STEP_WITHIN_S = 3600.0  # a step of a large LLM takes minutes, and is saved at its end


def train(
    output: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    config: Config = None,
    run: Annotated[Path, typer.Option(help="Folder of the run; a stopped run goes on from it.")] = Path("runs/kv_code"),
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Training set inside data_dir; default {_DATASET}, for a fitted start the LLM's own questions about --texts."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint to train further: a folder, or `default` for the shipped one. Of a fitted one (`cmt fit`) the code "
            "is trained, without labels."
        ),
    ] = None,
    prefix_steps: Annotated[
        int, typer.Option(min=0, help="Steps of the prefix; 0 keeps the start's.")
    ] = RECIPE.prefix_steps,
    code_steps: Annotated[int, typer.Option(min=1, help="Steps of the memory.")] = RECIPE.code_steps,
    top_k: Annotated[
        int, typer.Option(min=1, help="Memories a question that the checkpoint recommends.")
    ] = TRAINED_MEMORY.top_k,
    aggregation: Annotated[
        str,
        typer.Option(
            help="ψ: `select` gives the LLM the most useful vectors of the k memories, `stack` all, `single_context` (of "
            "soft tokens) one context of fixed size."
        ),
    ] = TRAINED_MEMORY.aggregation,
    seed: Annotated[int, typer.Option(help="Seed of data order and start.")] = RECIPE.seed,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Plain text (.txt, a folder, .jsonl) for text_steps; for a fitted start what questions are asked about.",
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    settings_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE of the memory (method=soft_tokens, alignment=low_rank, matching=cosine, objective=contrast, ...) "
            "or the recipe (accumulate=4, evaluate_every_steps=50, text_steps=200, ...); docs/method.md has all.",
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that train together, by Ray Train.", rich_help_panel=_MEMORY)
    ] = 1,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after so long, and write the memory as it stands; the same command goes on."),
    ] = None,
    ray: RayAddress = None,
) -> None:
    """Train a memory checkpoint for the frozen LLM: prefix, then the memory."""
    settings = read_settings(config, ray__address=ray)
    progress.print("starting the training")
    if not prefix_steps and start is None:
        raise SettingsError("--prefix-steps 0 needs --start: without a trained prefix the LLM can't read a memory")
    from cmt_core.checkpoint import Checkpoint, checkpoint_folder
    from cmt_core.training.overrides import parse_overrides

    first = checkpoint_folder(start).absolute() if start else None
    in_chat = first is not None and Checkpoint.load(first).config.reading == "chat"
    if minutes is not None and (in_chat or workers > 1):
        raise SettingsError(
            "--minutes is for one process that trains behind a learned prefix, not with --workers or from a fit"
        )
    memory, recipe = parse_overrides(settings_ or (), TRAINED_MEMORY, RECIPE)
    sizes: dict[str, Any] = {"prefix_steps": prefix_steps, "code_steps": code_steps, "seed": seed}
    model = settings.model
    arguments: dict[str, Any] = {
        "config": RecipeConfig(**(sizes | recipe)),
        "qa_file": None if in_chat and dataset is None else training_set(settings, dataset or _DATASET),
        "run": check_output(run, "the run's folder (--run)"),
        "output": check_output(output, "the checkpoint's folder"),
        "llm": model.llm,
        "retriever": model.retriever,
        "cache_dir": model.cache_dir,
        "device": model.device,
        "top_k": top_k,
        "aggregation": aggregation,
        "memory": memory,
        "texts": texts.absolute() if texts else None,
        "start": first,
        "minutes": minutes,
    }
    started = time.monotonic()
    done = _alone(arguments) if workers == 1 else _together(arguments, workers, settings)
    if not done and minutes is not None and time.monotonic() - started >= 60 * minutes:
        progress.print(f"cmt: not at its end after {minutes:g} minutes; the same command goes on from {run}")
    elif not done:
        progress.print(f"cmt: stopped; the same command goes on from {run}", style="red")
        sys.exit(130)


def training_set(settings: Settings, dataset: str) -> Path:
    """The file of that name inside data_dir; raises SettingsError where there is none."""
    path = (settings.data_dir / dataset).absolute()
    if not path.exists():
        raise SettingsError(f"training set {path} does not exist: set data_dir (CMT_DATA_DIR), or --dataset")
    return path


def _alone(arguments: dict[str, Any]) -> bool:
    from cmt_core.training.command import train_checkpoint
    from services.commands.training_bar import TrainingBar

    def report(line: str) -> None:
        progress.print(line)

    with left_to_finish(_STEP_WITHIN_S, "cmt: stopping after this step; a second signal ends it at once"):
        if not progress.is_terminal:  # a bar would fill a log file with its own past
            return train_checkpoint(**arguments, report=report)
        with TrainingBar(progress) as bar:
            return train_checkpoint(**arguments, report=report, on_step=bar.on_step)


def _together(arguments: dict[str, Any], workers: int, settings: Any) -> bool:
    from services.commands.distributed_training import train_on_workers

    return train_on_workers(arguments, workers, settings.ray, progress)
