"""`cmt ingest drain` ends the process that ingests here, and says so when there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.commands.tree import app
from services.errors import ServiceError
from services.ingest import drain as draining
from services.settings import Settings, load_settings

_INGEST = """
import signal, sys
from services.ingest.drain import noted_ingest
from services.settings import load_settings

stopped = []
signal.signal(signal.SIGTERM, {handler})
with noted_ingest(load_settings(bank__uri=sys.argv[1])):
    print("runs", flush=True)
    while not stopped:
        signal.sigtimedwait([], 0.05)
"""
ORDERLY, STUBBORN = "lambda *_: stopped.append(True)", "signal.SIG_IGN"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(bank__uri=str(tmp_path / "bank"), ingest__stop_within_s=0.1)


def start(settings: Settings, handler: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _INGEST.format(handler=handler), settings.bank.uri]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    return process


def test_the_running_ingest_ends_in_order_and_only_once(settings: Settings) -> None:
    process = start(settings, ORDERLY)
    assert draining.drain(settings)
    assert process.wait(10) == 0
    assert not draining.drain(settings)


def test_an_ingest_is_found_by_every_spelling_of_its_bank(settings: Settings) -> None:
    process = start(settings, ORDERLY)
    assert draining.drain(load_settings(bank__uri=f"file://{settings.bank.uri}/", ingest__stop_within_s=0.1))
    assert process.wait(10) == 0


def test_another_banks_ingest_is_left_alone(settings: Settings) -> None:
    process = start(settings, ORDERLY)
    assert not draining.drain(load_settings(bank__uri=f"{settings.bank.uri}-other"))
    assert process.poll() is None
    draining.drain(settings)
    process.wait(10)


def test_an_ingest_that_does_not_end_is_an_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "_EXTRA_S", 0.1)
    process = start(settings, STUBBORN)
    try:
        with pytest.raises(ServiceError, match="has not ended"):
            draining.drain(settings)
    finally:
        process.kill()
        process.wait(10)
    assert not draining.drain(settings)  # its note is still there, its process is not


def test_the_command_says_that_nothing_runs(settings: Settings) -> None:
    done = CliRunner().invoke(app, ["ingest", "drain", "--bank", settings.bank.uri])
    assert (done.exit_code, done.output.strip()) == (0, "no ingest runs here")
