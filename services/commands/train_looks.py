"""`cmt train-looks`: teaches ψ which of the documents found a question is about, from the LLM's states behind each memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.commands.options import Config, progress, read_settings
from services.commands.output_folder import check_output
from services.commands.train import training_set
from services.errors import SettingsError

__all__ = ["train_looks"]


def train_looks(
    output: Annotated[Path, typer.Argument(help="Folder for the checkpoint with the look.")],
    start: Annotated[
        str, typer.Option(help="Checkpoint that gets it: a folder, or `default` for the shipped one.")
    ] = "default",
    dataset: Annotated[str, typer.Option(help="Training set inside data_dir.")] = "qa_train.jsonl.gz",
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="Its sources, A+B asked of one bank; default four open ones.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="At most so many questions of each bank.")] = 12000,
    seed: Annotated[int, typer.Option(help="Seed of the questions' choice.")] = 0,
    config: Config = None,
) -> None:
    """Train the look of a checkpoint at the documents found; memories, prefixes and LLM stay what they are."""
    settings = read_settings(config)
    place = check_output(output, "the checkpoint's folder")
    if (output / "config.json").exists():
        raise SettingsError(f"{output.absolute()} holds a checkpoint already: name another folder")
    path = training_set(settings, dataset)
    from cmt_core.checkpoint import Checkpoint, checkpoint_folder
    from cmt_core.look_training import SOURCES, train_looks
    from cmt_core.model import CMT

    folder, model = checkpoint_folder(start), settings.model

    def report(line: str) -> None:
        progress.print(line, soft_wrap=True)

    loaded = CMT.load(model.llm, str(folder), model.retriever, model.cache_dir, device=model.device, report=report)
    checkpoint = train_looks(
        loaded, Checkpoint.load(folder), path, sources=sources or SOURCES, questions=questions, seed=seed, report=report
    )
    checkpoint.save(place)
    report(f"checkpoint written to {output}")
