"""`cmt fit` as typed: a checkpoint folder with a card, one line for what can't be done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.conftest import tiny_llm_folder, tiny_retriever_folder  # noqa: F401


def run(tmp_path: Path, llm: Path, retriever: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "CMT_MODEL__LLM": str(llm),
        "CMT_MODEL__RETRIEVER": str(retriever),
        "CMT_MODEL__CACHE_DIR": str(tmp_path / "cache"),
        "CMT_MODEL__DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "services.cli", "fit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


def test_fit_writes_a_checkpoint_and_says_what_it_keeps(
    tmp_path: Path,
    tiny_llm_folder: Path,  # noqa: F811
    tiny_retriever_folder: Path,  # noqa: F811
) -> None:
    output = tmp_path / "made"
    done = run(tmp_path, tiny_llm_folder, tiny_retriever_folder, str(output), "--bytes", "24", "--windows", "16")
    assert done.returncode == 0, done.stderr
    assert "of the gap kept" in done.stderr
    described = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert described["memory"]["bits_per_token"] == 8 * 24
    assert described["training"]["texts"] == "the packaged texts"
    card = (output / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| LLM fingerprint | `{described['llm']['fingerprint']}`" in card
    again = run(tmp_path, tiny_llm_folder, tiny_retriever_folder, str(output), "--bytes", "24")
    assert again.returncode == 2
    assert again.stderr.strip() == f"cmt: {output} holds a checkpoint already: name another folder"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--bytes", "4000"), "cmt: 4000 bytes a token want 8896 components, and this LLM has 192 numbers a token"),
        (("--bytes", "24", "--texts", "/no/such/file.txt"), "cmt: /no/such/file.txt can't be read: "),
        (("--bytes", "24", "--questions", "/no/such/file.jsonl"), "cmt: /no/such/file.jsonl can't be read: "),
    ],
)
def test_what_cannot_be_fitted_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    tiny_llm_folder: Path,  # noqa: F811
    tiny_retriever_folder: Path,  # noqa: F811
    arguments: tuple[str, ...],
    why: str,
) -> None:
    done = run(tmp_path, tiny_llm_folder, tiny_retriever_folder, str(tmp_path / "made"), *arguments)
    assert done.returncode in (2, 7)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(why)
    assert not (tmp_path / "made").exists()
