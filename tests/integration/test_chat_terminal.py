"""`cmt chat` on a terminal, as a person types: greeting, edited lines, earlier questions, and an end that is not one."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import find_free_port
from tests.serving import LocalEngine, Served, api_of
from tests.waiting import until

ROOT = Path(__file__).parents[2]
UP, LEFT, CTRL_D = "\x1b[A", "\x1b[D", "\x04"
BRIDGE = "Who opened the bridge in Aarhus?"


class Typing:
    """A person at a terminal in which `cmt chat` runs."""

    def __init__(self, folder: Path, url: str) -> None:
        here, there = pty.openpty()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CMT_")}
        home = {
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "INPUTRC": "/dev/null",
        }
        command = [sys.executable, "-m", "services.cli", "chat", "--url", url]
        self._here = here
        self.seen = ""
        self.process = subprocess.Popen(
            command, cwd=folder, env={**kept, **home}, stdin=there, stdout=there, stderr=there, start_new_session=True
        )
        os.close(there)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            try:
                self.seen += os.read(self._here, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                return

    def type(self, keys: str) -> None:
        os.write(self._here, keys.encode())

    def sees(self, text: str, times: int = 1) -> None:
        until(lambda: self.seen.count(text) >= times, within_s=60, seen=lambda: self.seen)

    def end(self) -> int:
        self.type(CTRL_D)
        return self.process.wait(timeout=30)


@pytest.fixture
def engine() -> LocalEngine:
    return LocalEngine()


@pytest.fixture
def url(engine: LocalEngine) -> Iterator[str]:
    running = Served(api_of(engine))
    yield running.url
    running.stop()


def test_chat_greets_answers_and_brings_questions_back(engine: LocalEngine, url: str, tmp_path: Path) -> None:
    typing = Typing(tmp_path, url)
    typing.sees("> ")
    assert "holds 1 article." in typing.seen
    assert "Latest: Bridge opens" in typing.seen
    assert "Ctrl-D or an empty line ends" in typing.seen
    typing.type(f"{BRIDGE}\n")
    typing.sees("Mayor Lund opened the bridge in Aarhus on Monday.")
    typing.sees("> ", 2)
    typing.type(f"{UP}{LEFT} on Monday\n")  # the same, with words put in before its question mark
    until(lambda: len(engine.asked) == 2, within_s=30, seen=lambda: typing.seen)
    assert engine.asked[1].question == "Who opened the bridge in Aarhus on Monday?"
    assert engine.asked[1].earlier == ((BRIDGE, "Mayor Lund opened the bridge in Aarhus on Monday."),)
    typing.sees("> ", 3)
    typing.type("/new\n")
    typing.sees("> ", 4)
    typing.type(f"{BRIDGE}\n")
    until(lambda: len(engine.asked) == 3, within_s=30, seen=lambda: typing.seen)
    assert engine.asked[2].earlier == ()
    typing.sees("> ", 5)
    assert typing.end() == 0
    remembered = tmp_path / "state" / "cmt" / "chat_history"
    assert BRIDGE in remembered.read_text()
    assert stat.S_IMODE(remembered.stat().st_mode) == 0o600


def test_questions_of_an_earlier_chat_come_back(engine: LocalEngine, url: str, tmp_path: Path) -> None:
    for _ in range(2):
        typing = Typing(tmp_path, url)
        typing.sees("> ")
        typing.type(f"{BRIDGE}\n" if not engine.asked else f"{UP}\n")
        typing.sees("Mayor Lund opened the bridge")
        typing.sees("> ", 2)
        assert typing.end() == 0
    assert [ask.question for ask in engine.asked] == [BRIDGE, BRIDGE]


def test_question_that_is_refused_does_not_end_the_chat(engine: LocalEngine, url: str, tmp_path: Path) -> None:
    typing = Typing(tmp_path, url)
    typing.sees("> ")
    typing.type("\x16\x01\n")  # a control character is no question
    typing.sees("answered 400")
    typing.sees("> ", 2)
    typing.type(f"{BRIDGE}\n")
    typing.sees("Mayor Lund opened the bridge")
    typing.sees("> ", 3)
    assert typing.end() == 0


def test_chat_without_a_service_says_so_at_once(tmp_path: Path) -> None:
    typing = Typing(tmp_path, f"http://127.0.0.1:{find_free_port()}")
    typing.sees("no query service at")
    assert typing.process.wait(timeout=30) == 1
