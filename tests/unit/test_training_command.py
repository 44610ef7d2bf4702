"""`cmt train` from the terminal: its bar, and settings that are refused before anything is loaded."""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cmt_core.checkpoint import Checkpoint
from cmt_core.errors import ConfigError, DataError
from cmt_core.fitting.fit_config import FitConfig
from cmt_core.model import CMT
from cmt_core.reading.aggregation import Select
from cmt_core.training.command import train_checkpoint
from cmt_core.training.recipe_config import TRAINED_MEMORY, RecipeConfig
from services.commands.fit import fit
from services.commands.train import train
from services.commands.training_bar import TrainingBar
from services.commands.tree import app
from services.errors import SettingsError
from services.settings import load_settings
from tests.unit.conftest import TinyFolders, write_corpus_questions


def test_bar_shows_each_stage_with_loss_and_speed() -> None:
    screen = io.StringIO()
    with TrainingBar(Console(file=screen, force_terminal=True, width=140)) as bar:
        bar.on_step("prefix", 1, 2, {"loss": 2.5, "tokens_per_s": 1234.4})
        bar.on_step("soft", 49, 100, {"loss": 1.25, "tokens_per_s": 99.0, "held_out": 1.5})
    last = screen.getvalue()
    for shown in ("prefix", "2/2", "loss 2.500", "1,234 tokens/s", "soft", "50/100", "loss 1.250 (held out 1.500)"):
        assert shown in last, shown


def test_a_command_line_that_says_nothing_trains_and_fits_by_the_librarys_defaults() -> None:
    def default(command: Callable[..., None], name: str) -> Any:
        return inspect.signature(command).parameters[name].default

    for name in ("prefix_steps", "code_steps", "seed"):
        assert default(train, name) == getattr(RecipeConfig(), name)
    for name in ("top_k", "aggregation"):
        assert default(train, name) == default(train_checkpoint, name) == getattr(TRAINED_MEMORY, name)
    for name in ("token_bytes", "windows", "seed"):
        assert default(fit, name) == getattr(FitConfig(), name)
    settings = load_settings().model
    for name in ("llm", "retriever"):
        assert default(CMT.load, name) == getattr(settings, name)
    assert default(CMT.load, "cache_dir").expanduser() == settings.cache_dir


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        (["--set", "acumulate=4"], ConfigError, "unknown configuration key 'acumulate'"),
        (["--set", "accumulate=four"], ConfigError, "accumulate must be of type int"),
        (["--prefix-steps", "0"], SettingsError, "--prefix-steps 0 needs --start"),
        (["--minutes", "5", "--workers", "2"], SettingsError, "--minutes is for one process"),
    ],
)
def test_settings_that_cannot_work_end_the_command_at_once(
    tmp_path: Path, options: list[str], error: type[Exception], complaint: str
) -> None:
    result = CliRunner().invoke(app, ["train", str(tmp_path / "out"), "--run", str(tmp_path / "run"), *options])
    assert isinstance(result.exception, error)
    assert complaint in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_looks_are_not_written_over_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["train-looks", str(tmp_path)])
    assert isinstance(result.exception, SettingsError)
    assert "holds a checkpoint already" in str(result.exception)


def test_looks_are_trained_from_the_terminal(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    start = Checkpoint.load(tiny_folders.checkpoint)
    backbone = tiny_folders.load_cmt().backbone
    config = dataclasses.replace(start.config, aggregation="select", prior_temperature=1.0)
    select = Select(backbone.shape, backbone.query_heads, config.context_vectors)
    dataclasses.replace(start, config=config, select=select).save(tmp_path / "start")
    write_corpus_questions(tmp_path / "qa.jsonl")
    (tmp_path / "cmt.yaml").write_text(
        f"data_dir: {tmp_path}\nmodel:\n  llm: {tiny_folders.llm}\n  retriever: {tiny_folders.retriever}\n"
        f"  cache_dir: {tiny_folders.cache}\n  device: cpu\n"
    )
    command = ["train-looks", str(tmp_path / "out"), "--start", str(tmp_path / "start"), "--dataset", "qa.jsonl"]
    options = ["--config", str(tmp_path / "cmt.yaml"), "--source"]
    result = CliRunner().invoke(app, [*command, *options, "news"])
    assert result.exception is None, result.output
    assert Checkpoint.load(tmp_path / "out").look_head is not None
    refused = CliRunner().invoke(app, [command[0], str(tmp_path / "other"), *command[2:], *options, "nobody"])
    assert isinstance(refused.exception, DataError)
    assert "no question of nobody" in str(refused.exception)
