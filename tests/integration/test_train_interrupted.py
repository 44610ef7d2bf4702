"""A signal in the middle of a training step: the step is kept, however long it takes, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.interrupts import ENDS_WITHIN_S
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
from tests.waiting import until

ROOT = Path(__file__).parents[2]
LOG = Path("prefix") / "log.jsonl"
BATCHES_A_STEP = 400  # longer than a process has to end


def told_at(file: Path, number: signal.Signals, folders: Any, tmp_path: Path) -> tuple[int, str]:
    """Exit code and words of a training that got a signal when a file of its run was there."""
    run = tmp_path / "run"
    options = ["--prefix-steps", "50", "--run", str(run), "--dataset", str(write_questions(tmp_path / "qa.jsonl"))]
    for value in (f"accumulate={BATCHES_A_STEP}", "prefix_windows=2", "window_tokens=64", "prefix_tokens=8"):
        options += ["--set", value]
    parts = {"LLM": folders.llm, "RETRIEVER": folders.retriever, "CACHE_DIR": folders.cache}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "train", str(tmp_path / "out"), *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | {f"CMT_MODEL__{name}": str(path) for name, path in parts.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: (run / file).exists() or process.poll() is not None, 200)
        process.send_signal(number)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_step_under_way_is_finished_and_kept(
    tiny_folders: Any,  # noqa: F811
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    code, said = told_at(LOG, number, tiny_folders, tmp_path)
    assert code == 130, said
    assert "stopping after this step" in said
    assert "the same command goes on from" in " ".join(said.split())
    steps = (tmp_path / "run" / LOG).read_text(encoding="utf-8").splitlines()
    assert torch.load(tmp_path / "run" / "prefix" / "state.pt", weights_only=True)["step"] == len(steps) < 50
    assert float(steps[-1].split('"seconds": ')[1].split(",")[0]) > ENDS_WITHIN_S


@pytest.mark.timeout(300)
def test_signal_before_the_first_step_ends_it(
    tiny_folders: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    code, said = told_at(Path("run.json"), signal.SIGTERM, tiny_folders, tmp_path)
    assert code == 130, said
    log = tmp_path / "run" / LOG
    assert len(log.read_text(encoding="utf-8").splitlines() if log.exists() else []) <= 1
