"""Ctrl-C and SIGTERM whatever the process is doing: it ends in time, with one line and the documented code, without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from services.interrupts import ENDS_WITHIN_S

ROOT = Path(__file__).parents[2]
END_S = 60.0  # a bound for a busy machine; the process sets its own, of two seconds

PROGRAM = """
import ctypes, signal, sys, threading, time
from services.interrupts import Interrupts, interruptible, left_to_finish
interrupts = Interrupts()
interrupts.watch()
def ready():
    print("ready", flush=True)
def run():
{body}
code = 0
try:
    run()
except KeyboardInterrupt:
    pass
except SystemExit as end:
    code = end.code
if interrupts.ends(code):
    interrupts.end()
print("done", flush=True)
"""
WAITS = "ready(); time.sleep(600)"
SWALLOWS = """
try:
    ready(); time.sleep(600)
except BaseException:
    time.sleep(600)
"""
NATIVE = """
mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
libc.pthread_mutex_lock(mutex)
ready()
libc.pthread_mutex_lock(mutex)  # never returns to the interpreter, and no signal wakes it
"""
DESTRUCTOR = """
class Slow:
    def __del__(self):
        ready(); time.sleep(600)
slow = Slow()
del slow
time.sleep(600)
"""
THREADS = """
threading.Thread(target=time.sleep, args=(600,)).start()
ready(); time.sleep(600)
"""
FINISHES = """
with interruptible(600.0) as wait:
    ready(); wait(600.0)
"""
HANGS = """
with interruptible(0.2) as wait:
    ready(); wait(600.0); time.sleep(600)
"""
HANGS_LONG = """
with interruptible(600.0) as wait:
    ready(); wait(600.0); ready(); time.sleep(600)
"""
TAKEN_OVER = """
with left_to_finish(600.0, "a moment"):
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    ready()
    while not asked.is_set():
        time.sleep(0.01)
    time.sleep({long})
"""
NOT_YET_TAKEN_OVER = """
with left_to_finish(600.0, "a moment"):
    {body}
"""
CLEANS = """
try:
    ready(); time.sleep(600)
finally:
    print("cleaned", flush=True)
"""


IN_A_FOLDER = """
import pathlib
from services.interrupts import temporary_folder
with temporary_folder("{prefix}") as folder:
    (pathlib.Path(folder) / "rows").write_text("a")
    {rest}
"""


def start(body: str) -> subprocess.Popen[str]:
    program = PROGRAM.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_ready(process)
    return process


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=END_S)
    assert "Traceback" not in err
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", [WAITS, SWALLOWS, NATIVE, DESTRUCTOR, THREADS])
def test_signal_ends_the_process_whatever_holds_it(body: str, number: int) -> None:
    process = start(body)
    process.send_signal(number)
    assert ended(process) == (130, "", "cmt: interrupted\n")


def test_library_that_has_taken_sigterm_over_changes_nothing() -> None:
    process = start("signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number)); ready(); time.sleep(600)")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (130, "", "cmt: interrupted\n")


@pytest.mark.parametrize("code", [2, 15])
def test_program_that_ends_with_a_signals_number_by_itself_was_not_interrupted(code: int) -> None:
    process = start(f"ready(); sys.exit({code})")
    assert ended(process) == (0, "done\n", "")


def test_what_was_opened_is_closed_first() -> None:
    process = start(CLEANS)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "cleaned\n", "cmt: interrupted\n")


@pytest.mark.parametrize(
    "rest",
    [
        "ready(); time.sleep(600)",
        "libc = ctypes.CDLL(None); mutex = ctypes.create_string_buffer(64); libc.pthread_mutex_lock(mutex); ready(); "
        "libc.pthread_mutex_lock(mutex)",
    ],
)
def test_temporary_folder_goes_with_the_process(rest: str) -> None:
    prefix = f"cmt-interrupts-{uuid.uuid4().hex}-"
    process = start(IN_A_FOLDER.format(prefix=prefix, rest=rest))
    assert len(list(Path(tempfile.gettempdir()).glob(f"{prefix}*"))) == 1
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "cmt: interrupted\n")
    assert list(Path(tempfile.gettempdir()).glob(f"{prefix}*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_request_to_finish_raises_nothing_and_ends_as_the_program_says(number: int) -> None:
    process = start(FINISHES)
    process.send_signal(number)
    assert ended(process) == (0, "done\n", "")


def test_library_that_has_taken_sigterm_over_to_finish_has_its_time() -> None:
    process = start(TAKEN_OVER.format(long=ENDS_WITHIN_S + 1))
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "done\n", "a moment\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", ["ready(); time.sleep(600)", NATIVE.strip().replace("\n", "\n    ")])
def test_as_long_as_nobody_has_taken_it_over_a_signal_ends_the_process(body: str, number: int) -> None:
    process = start(NOT_YET_TAKEN_OVER.format(body=body))
    process.send_signal(number)
    assert ended(process) == (130, "", "cmt: interrupted\n")


def test_one_that_does_not_finish_in_its_time_is_ended() -> None:
    process = start(HANGS)
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (0, "")
    assert "the next start does it again" in err


def test_second_signal_ends_at_once() -> None:
    process = start(HANGS_LONG)
    process.send_signal(signal.SIGINT)
    wait_until_ready(process)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "cmt: interrupted\n")


@pytest.mark.parametrize("arguments", [("--help",), ("config", "show"), ("ingest",), ("demo",), ("serve",), ("eval",)])
def test_command_is_interrupted_while_it_is_being_imported(arguments: tuple[str, ...], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not _catches(process.pid, signal.SIGTERM):  # the interpreter itself does not: from here on it is ours
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (130, "", "cmt: interrupted\n")


@pytest.mark.parametrize("late_s", [0.0, 0.005, 0.02, 0.05])
def test_ctrl_c_leaves_no_trace_from_the_first_line_on(late_s: float, tmp_path: Path) -> None:
    program = "import sys; print('line', flush=True); from services.cli import main; main()"
    for _ in range(20):  # a busy machine may hold this process up until the other one has done all it had to do
        code, _, err = ended(_interrupted(program, late_s, tmp_path))
        if code:
            break
    assert (code, err) in [(130, "cmt: interrupted\n"), (-signal.SIGINT, "")]


def _interrupted(program: str, late_s: float, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that got SIGINT as soon as Python's own handler, which makes a trace, was gone; it may have ended before."""
    process = subprocess.Popen(
        [sys.executable, "-X", "frozen_modules=off", "-c", program, "config", "show"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    while _catches(process.pid, signal.SIGINT) and not _catches(process.pid, signal.SIGTERM):
        assert process.poll() is None
    time.sleep(late_s)
    process.send_signal(signal.SIGINT)  # nothing is sent to one that has ended, and its return code is known then
    return process


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
