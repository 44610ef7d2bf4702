"""`cmt eval own`: text and memories of the question's own document, on the same questions, going on where it was ended."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cmt_core.data.qa import QAExample
from cmt_core.data.readers import read_examples
from cmt_core.errors import CheckpointError, ConfigError
from cmt_core.evaluation.own_document import KeptAnswers, beside, own_documents
from cmt_core.model import CMT
from services.commands.tree import app
from tests.unit.conftest import TinyFolders


@pytest.fixture
def bells(tmp_path: Path) -> Path:
    rows = [
        {
            "doc_id": f"d{i}",
            "text": f"Town {i} has {i} bells.",
            "question": f"How many in town {i}?",
            "answers": [str(i)],
        }
        for i in range(6)
    ]
    path = tmp_path / "bells.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture
def examples(bells: Path) -> list[QAExample]:
    return list(read_examples(bells))


def points(model: CMT, examples: list[QAExample], **more: Any) -> list[Any]:
    return list(own_documents([("tiny", model)], examples, questions=5, max_new_tokens=4, **more))


def test_text_and_memory_are_asked_the_same_questions(exact_cmt: CMT, examples: list[QAExample]) -> None:
    text, none, memory = points(exact_cmt, examples, closed=True)
    assert [text.system, none.system, memory.system] == ["text", "none", "memory"]
    assert text.questions == none.questions == memory.questions == 5
    assert text.token_bytes == 2 * exact_cmt.backbone.shape.width
    assert memory.token_bytes == exact_cmt.config.token_bytes
    # this checkpoint's code loses nothing: its memories are the text
    assert memory.nats == pytest.approx(text.nats, abs=0.02)
    assert none.nats != pytest.approx(text.nats, abs=0.02)


def test_an_evaluation_goes_on_where_it_was_ended(
    exact_cmt: CMT, examples: list[QAExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = points(exact_cmt, examples)
    path = tmp_path / "out" / "own_answers.jsonl"
    monkeypatch.setattr("cmt_core.evaluation.own_document._AT_ONCE", 2)
    lines: list[str] = []

    def ended(line: str) -> None:
        lines.append(line)
        if len(lines) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points(exact_cmt, examples, kept=KeptAnswers(path), report=ended)
    before = path.read_text(encoding="utf-8")
    assert 5 <= before.count("\n") < 10
    again = points(exact_cmt, examples, kept=KeptAnswers(path))
    assert path.read_text(encoding="utf-8").startswith(before)
    assert path.read_text(encoding="utf-8").count("\n") == 10
    assert [(one.f1, one.nats) for one in again] == [(one.f1, pytest.approx(one.nats, abs=1e-3)) for one in whole]


def test_one_checkpoint_is_rounded_to_each_number_of_bits(tiny_cmt: CMT, examples: list[QAExample]) -> None:
    own = tiny_cmt.config.bits_per_token
    _, plain = points(tiny_cmt, examples)
    _, coarse, same = points(tiny_cmt, examples, bits=[own // 2, own])
    assert (coarse.token_bytes, same.token_bytes) == (own // 16, own // 8)
    assert same.nats == pytest.approx(plain.nats, abs=0.02)  # the codes were float16 in between
    assert coarse.window_kb < same.window_kb


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="doesn't hold answers of an evaluation"):
        KeptAnswers(tmp_path / "own.jsonl")


def test_checkpoints_of_one_llm_share_it_and_others_are_refused(
    tiny_cmt: CMT, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    other = beside(tiny_cmt, tiny_folders.checkpoint)
    assert other.backbone is tiny_cmt.backbone
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_folders.checkpoint, folder)
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    described["llm"]["fingerprint"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is of another LLM"):
        beside(tiny_cmt, folder)


def test_command_writes_every_figure(
    bells: Path, tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("llm", "retriever", "checkpoint"):
        monkeypatch.setenv(f"CMT_MODEL__{name.upper()}", str(getattr(tiny_folders, name)))
    monkeypatch.setenv("CMT_DATA_DIR", str(tmp_path))
    again = tmp_path / "again"
    shutil.copytree(tiny_folders.checkpoint, again)
    out = tmp_path / "out"
    arguments = [str(tiny_folders.checkpoint), str(again), "--dataset", bells.name, "--questions", "3"]
    result = CliRunner().invoke(app, ["eval", "own", *arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "own.json").read_text(encoding="utf-8"))["points"]
    assert [row["system"] for row in rows] == ["text", "memory", "memory"]
    assert (out / "own.md").exists()
    assert (out / "own_answers.jsonl").read_text(encoding="utf-8").count("\n") == 9
