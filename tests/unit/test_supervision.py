"""A service's thread: whatever its work raises is counted and told, and the work is run again or given up."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from services.errors import is_panic
from services.metrics import Metrics
from services.supervision import ServiceThread
from tests.waiting import until


class PanicException(BaseException):
    """As pyo3 raises it where Rust code panics."""


def quit_now() -> None:
    sys.exit(3)


def failures(metrics: Metrics, thread: str) -> float:
    return metrics.snapshot().numbers.get("cmt_thread_failures_total", {}).get((thread,), 0.0)


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    "fault",
    [
        raising(RuntimeError("x")),
        raising(KeyError(7)),
        raising(MemoryError()),
        raising(PanicException("index out of bounds")),
        raising(GeneratorExit()),
        raising(KeyboardInterrupt()),
        quit_now,
    ],
)
def test_work_that_raises_anything_is_told_counted_and_run_again(fault: Callable[[], None]) -> None:
    metrics, told, rounds, done = Metrics(), list[BaseException](), list[int](), threading.Event()

    def work() -> None:
        rounds.append(1)
        if len(rounds) < 3:
            fault()
        done.set()

    thread = ServiceThread("bank", work, metrics, failed=told.append).start()
    assert done.wait(10.0)
    assert thread.join(10.0)
    assert thread.trouble is None
    assert len(told) == failures(metrics, "bank") == 2


def test_failures_in_a_row_give_it_up_and_a_round_that_worked_starts_the_count_anew() -> None:
    metrics, ended, rounds = Metrics(), threading.Event(), list[int]()

    def work() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            thread.worked()
        raise ValueError("a text that must not be logged")

    thread = ServiceThread("model", work, metrics, given_up=ended.set, most_failures=3)
    thread.start()
    assert ended.wait(10.0)
    assert thread.join(10.0)
    assert len(rounds) == failures(metrics, "model") == 4  # one, then three in a row
    assert thread.trouble == "thread model has ended: ValueError"


def test_a_handler_or_a_metric_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenMetrics(Metrics):
        def count(self, *arguments: Any, **labels: Any) -> None:
            raise KeyError("cmt_thread_failures_total")

    rounds, done = list[int](), threading.Event()

    def work() -> None:
        rounds.append(1)
        if len(rounds) < 3:
            raise RuntimeError("secret question")
        done.set()

    with caplog.at_level(logging.INFO):
        ServiceThread("model", work, BrokenMetrics(), failed=lambda error: quit_now()).start()
        assert done.wait(10.0)
    assert "thread model failed: RuntimeError at test_supervision.py:" in caplog.text
    assert "SystemExit" in caplog.text  # the handler's own failure
    assert "secret question" not in caplog.text


def test_a_thread_that_is_told_to_stop_does_not_wait_out_its_pause() -> None:
    stopping, rounds = threading.Event(), list[int]()

    def work() -> None:
        rounds.append(1)
        if not stopping.is_set():
            raise RuntimeError

    thread = ServiceThread("bank-gauges", work, Metrics()).start()
    until(lambda: len(rounds) >= 3)
    stopping.set()
    assert thread.join(10.0)


def test_rusts_panics_are_known_by_name() -> None:
    assert is_panic(PanicException())
    assert not is_panic(SystemExit())
    assert not is_panic(RuntimeError("PanicException"))


def stalled_s(metrics: Metrics, thread: str) -> float | None:
    return metrics.snapshot().numbers.get("cmt_thread_stalled_seconds", {}).get((thread,))


def test_thread_that_hangs_in_its_work_is_told_once_and_forgotten_when_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, hang, end = Metrics(), threading.Event(), threading.Event()

    def work() -> None:
        with thread.at_work():
            hang.wait(20.0)
        end.wait(20.0)

    thread = ServiceThread("model", work, metrics, stalled_after_s=0.05)
    thread.start()
    until(lambda: thread.stall, 10.0)
    assert thread.trouble is None  # it may go on yet
    for _ in range(3):
        thread.look()
    assert "thread model has been at one piece of work" in str(thread.stall)
    assert [record.getMessage()[:12] for record in caplog.records] == ["thread model"]
    assert (stalled_s(metrics, "model") or 0) > 0.05
    hang.set()
    until(lambda: thread.stall is None, 10.0)
    thread.look()
    assert stalled_s(metrics, "model") == 0
    end.set()
    assert thread.join(10.0)


def test_thread_that_waits_for_work_never_hangs() -> None:
    metrics, end = Metrics(), threading.Event()
    thread = ServiceThread("poll", lambda: bool(end.wait(20.0)) and None, metrics, stalled_after_s=0.01).start()
    time.sleep(0.1)
    thread.look()
    assert (thread.stall, stalled_s(metrics, "poll")) == (None, None)
    end.set()
    assert thread.join(10.0)


def test_work_that_fails_is_no_longer_under_way() -> None:
    metrics, again = Metrics(), threading.Event()

    def work() -> None:
        if not again.is_set():
            again.set()
            with thread.at_work():
                raise RuntimeError("x")
        time.sleep(0.2)

    thread = ServiceThread("bank", work, metrics, stalled_after_s=0.05)
    thread.start()
    assert again.wait(10.0)
    time.sleep(0.1)
    assert thread.stall is None
    assert thread.join(10.0)


def test_all_threads_are_looked_at_by_one_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.supervision._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("services.supervision._watcher", None)
    metrics, end = Metrics(), threading.Event()
    made: list[ServiceThread] = []

    def work() -> None:
        with made[-1].at_work():
            end.wait(20.0)

    for name in ("one", "two", "three"):
        made.append(ServiceThread(name, work, metrics, stalled_after_s=0.01))
        made[-1].start()
        until(lambda: made[-1]._since_s is not None, 10.0)
    until(lambda: all(stalled_s(metrics, name) for name in ("one", "two", "three")), 10.0)
    end.set()
    assert all(thread.join(10.0) for thread in made)
