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
BATCHES_A_STEP = 400  # longer than a process has to end


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_step_under_way_is_finished_and_kept(
    tiny_folders: Any,  # noqa: F811
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "prefix" / "log.jsonl"
    options = ["--prefix-steps", "50", "--run", str(run), "--dataset", str(write_questions(tmp_path / "qa.jsonl"))]
    for value in (f"accumulate={BATCHES_A_STEP}", "prefix_windows=2", "window_tokens=64", "prefix_tokens=8"):
        options += ["--set", value]
    parts = {"LLM": tiny_folders.llm, "RETRIEVER": tiny_folders.retriever, "CACHE_DIR": tiny_folders.cache}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "train", str(tmp_path / "out"), *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | {f"CMT_MODEL__{name}": str(path) for name, path in parts.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: log.exists() or process.poll() is not None, 200)
        process.send_signal(number)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "stopping after this step" in said
    assert "the same command goes on from" in " ".join(said.split())
    steps = log.read_text(encoding="utf-8").splitlines()
    assert torch.load(run / "prefix" / "state.pt", weights_only=True)["step"] == len(steps) < 50
    assert float(steps[-1].split('"seconds": ')[1].split(",")[0]) > ENDS_WITHIN_S
