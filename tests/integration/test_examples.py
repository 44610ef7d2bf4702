"""The examples run as they stand, with the real LLM, and say what the README says they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.timeout(600)


def run(program: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_answers_from_its_own_two_articles_and_the_readme_shows_it(tmp_path: Path) -> None:
    source = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    printed = run(source, tmp_path)
    assert "Mila Toral" in printed
    assert "31 crowns" in printed
    assert (tmp_path / "news-bank" / "rows.jsonl").is_file()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(line.strip() in readme for line in printed.splitlines() if line.strip())


def test_every_cell_of_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    printed = run("\n".join([*code, "print(bank.ask('Who leads the repair of the harbour bridge?').text)"]), tmp_path)
    assert "Oskar Brandt" in printed
    assert all(not cell.get("outputs") for cell in cells)
