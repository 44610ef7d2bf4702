"""`cmt eval stream` from the terminal: its stable keys in the JSON, and the table and plot beside it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.commands.tree import app
from tests.unit.conftest import TinyFolders

STABLE_KEYS = {
    *("system", "em", "f1", "papers_em", "oracle_em", "oracle_f1", "recall_at_1", "recall_at_k"),
    *("vectors_per_document", "bytes_per_document", "prompt_tokens", "seconds", "answer_nats", "oracle_nats"),
}


@pytest.fixture
def cmt_settings(tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as the settings' own, and data_dir with a set of six questions."""
    for name in ("llm", "retriever", "checkpoint"):
        monkeypatch.setenv(f"CMT_MODEL__{name.upper()}", str(getattr(tiny_folders, name)))
    monkeypatch.setenv("CMT_DATA_DIR", str(tmp_path))
    rows = [
        {
            "doc_id": f"d{i}",
            "text": f"Town {i} has {i} bells.",
            "question": f"How many in town {i}?",
            "answers": [str(i)],
        }
        for i in range(6)
    ]
    with gzip.open(tmp_path / "bells.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path


def test_stream_writes_every_figure_of_every_system(cmt_settings: Path) -> None:
    figures, out = cmt_settings / "figures.json", cmt_settings / "out"
    arguments = ["--dataset", "bells.jsonl.gz", "--questions", "3", "--seed", "1", "--k", "2"]
    systems = ["--systems", "stack,rag_bare,rag_prefix,closed,stack@1"]
    written = ["--json", str(figures), "--out", str(out)]
    result = CliRunner().invoke(app, ["eval", "stream", *arguments, *systems, *written], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(figures.read_text())
    assert [(row["system"], row["k"]) for row in rows] == [
        *(("stack", 2), ("rag_bare", 2), ("rag_prefix", 2), ("closed", 0), ("stack", 1))
    ]
    assert all(row.keys() >= STABLE_KEYS for row in rows)
    assert json.loads((out / "stream.json").read_text())["points"] == rows
    assert (out / "stream.md").read_text().count("\n| ") == 7  # head, line and five systems
    assert (out / "stream.png").read_bytes().startswith(b"\x89PNG")
