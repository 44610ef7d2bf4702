"""Two workers of Ray Train train one checkpoint, through a real local Ray."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cmt_core.checkpoint import Checkpoint
from cmt_core.training.plot import read_log
from cmt_core.training.recipe import RecipeConfig
from services.commands.distributed_training import train_on_workers
from services.settings import RaySettings
from tests.unit.conftest import (  # noqa: F401 pytest finds fixtures by name
    load_backbone,
    tiny_backbone,
    tiny_checkpoint,
    tiny_folders,
    tiny_llm_folder,
    tiny_memory,
    tiny_retriever_folder,
)
from tests.unit.test_core_training import write_questions


def arguments(folders: Any, folder: Path) -> dict[str, Any]:
    config = RecipeConfig(
        prefix_steps=2,
        code_steps=2,
        prefix_windows=2,
        groups_per_step=1,
        group_windows=2,
        k_cycle=(1, 2),
        pca_windows=4,
    )
    return {
        "config": config,
        "qa_file": write_questions(folder / "qa.jsonl"),
        "run": folder / "run",
        "output": folder / "out",
        "llm": str(folders.llm),
        "retriever": str(folders.retriever),
        "cache_dir": folders.cache,
        "device": "cpu",
        "aggregation": "select",
        "memory": {"window_tokens": 64, "prefix_tokens": 8, "code_width": 32, "bits_per_token": 128},
    }


@pytest.mark.timeout(240)
def test_two_workers_write_one_checkpoint(
    tiny_folders: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray.train", exc_type=ImportError)
    console, settings = Console(file=io.StringIO()), RaySettings()
    given = arguments(tiny_folders, tmp_path)
    assert train_on_workers(given, 2, settings, console)
    assert Checkpoint.load(tmp_path / "out").config.bits_per_token == 128
    for stage in ("prefix", "code"):
        rows = read_log(tmp_path / "run" / stage / "log.jsonl")
        assert [row["step"] for row in rows] == [0, 1]
        lines = (tmp_path / "run" / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2  # the first worker alone writes
