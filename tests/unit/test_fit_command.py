"""`cmt fit`: a checkpoint folder with a card, one line for what can't be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.commands.errors import one_line_errors
from services.commands.tree import app


@pytest.fixture(autouse=True)
def settings(
    tmp_path: Path, tiny_llm_folder: Path, tiny_retriever_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny models by the environment, in a cache and a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CMT_MODEL__LLM", str(tiny_llm_folder))
    monkeypatch.setenv("CMT_MODEL__RETRIEVER", str(tiny_retriever_folder))
    monkeypatch.setenv("CMT_MODEL__CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CMT_MODEL__DEVICE", "cpu")


def cmt(*arguments: str) -> int:
    """Runs a command as `cmt` does; its exit code."""
    try:
        with one_line_errors():
            app(list(arguments), standalone_mode=False)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_fit_writes_a_checkpoint_and_says_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "made"
    assert cmt("fit", str(output), "--bytes", "24", "--windows", "16") == 0
    assert "of the gap kept" in capsys.readouterr().err
    described = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert described["memory"]["bits_per_token"] == 8 * 24
    assert described["training"]["texts"] == "the packaged texts"
    card = (output / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| LLM fingerprint | `{described['llm']['fingerprint']}`" in card
    assert cmt("fit", str(output), "--bytes", "24") == 2
    assert capsys.readouterr().err.strip() == f"cmt: {output} holds a checkpoint already: name another folder"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--bytes", "4000"), "cmt: 4000 bytes a token want 14224 components, and this LLM has 192 numbers a token"),
        (("--bytes", "24", "--texts", "/no/such/file.txt"), "cmt: /no/such/file.txt can't be read: "),
        (("--bytes", "24", "--questions", "/no/such/file.jsonl"), "cmt: /no/such/file.jsonl can't be read: "),
    ],
)
def test_what_cannot_be_fitted_is_one_line_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cmt("fit", str(tmp_path / "made"), *arguments) in (2, 7)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(why)
    assert not (tmp_path / "made").exists()
