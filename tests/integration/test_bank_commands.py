"""Claims about `cmt bank`: upkeep, copies and erasure from the command line, in this process."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.bank.reader import BankReader
from services.bank.writer import BankWriter
from services.commands.tree import app
from services.errors import BankUnavailable
from tests.integration.test_bank import LAYOUT, T0, at, delete, seconds_clock, texts, write


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "bank")
    with BankWriter(uri, LAYOUT, maintain_every=0, clock=seconds_clock()) as writer:
        for number in range(10):
            writer.commit([write(f"d{number % 4}", at(number), f"v{number}")])
        writer.commit([delete("d3", at(20))])
    return uri


def run(*arguments: str) -> str:
    """What a command prints; its errors are raised as they are."""
    result = CliRunner().invoke(app, ["bank", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_exported_bank_is_imported_with_its_history_and_its_guards(uri: str, tmp_path: Path) -> None:
    copy, file = str(tmp_path / "copy"), str(tmp_path / "bank.parquet")
    assert run("export", file, "--bank", uri) == f"11 rows written to {file}\n"
    assert run("import", file, "--bank", copy) == f"11 rows read from {file}\n"
    old, new = (BankReader(one, LAYOUT, 0) for one in (uri, copy))
    for second in range(13):
        moment = T0 + timedelta(seconds=second)
        assert texts(new, moment) == texts(old, moment)
    with BankWriter(copy, LAYOUT) as writer:
        assert writer.commit([write("d3", at(19), "late"), write("d1", at(9), "replayed")]).stale == 2


def test_import_never_mixes_with_rows_that_are_there(uri: str, tmp_path: Path) -> None:
    file = tmp_path / "bank.parquet"
    run("export", str(file), "--bank", uri)
    with pytest.raises(BankUnavailable, match="has rows already"):
        run("import", str(file), "--bank", uri)
    file.write_bytes(b"no parquet")
    with pytest.raises(BankUnavailable, match="is not a Parquet file"):
        run("import", str(file), "--bank", str(tmp_path / "copy"))


def test_optimize_merges_what_stats_then_counts(uri: str) -> None:
    before = json.loads(run("stats", "--bank", uri, "--json"))
    assert before["fragments"] > 1
    assert before["unindexed_words_rows"] == before["rows"] == 11
    assert "fragments became" in run("optimize", "--bank", uri)
    after = json.loads(run("stats", "--bank", uri, "--json"))
    assert (after["fragments"], after["rows"], after["unindexed_words_rows"]) == (1, 11, 0)


def test_purge_tells_how_many_rows_it_erased(uri: str) -> None:
    assert run("purge", "--doc", "d1", "--bank", uri) == "3 rows of 'd1' erased\n"
    assert BankReader(uri, LAYOUT, 0).history("d1") == []


@pytest.mark.parametrize("command", [("optimize",), ("purge", "--doc", "d1")])
def test_upkeep_by_hand_waits_for_no_running_writer(uri: str, command: tuple[str, ...]) -> None:
    with BankWriter(uri, LAYOUT), pytest.raises(BankUnavailable, match="another writer has it open"):
        run(*command, "--bank", uri)


@pytest.mark.parametrize("command", [("optimize",), ("purge", "--doc", "d1"), ("export", "x.parquet")])
def test_missing_bank_is_not_made_by_looking_after_it(tmp_path: Path, command: tuple[str, ...]) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(BankUnavailable, match="there is no bank at"):
        run(*command, "--bank", str(missing))
    assert not missing.exists()
