"""The cores of a process, in a container and out of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from services.threads import available_cores, use_all_cores

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("written", "cores"),
    [("max 100000", CORES), ("100000 100000", 1), ("50000 100000", 1), ("110000 100000", min(2, CORES)), ("", CORES)],
)
def test_a_containers_limit_bounds_the_cores(tmp_path: Path, written: str, cores: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(written, encoding="ascii")
    assert available_cores(quota) == cores


def test_without_a_limit_all_cores_count(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "missing") == CORES


def test_only_a_running_batchs_threads_spin_and_whoever_set_it_knows_better(monkeypatch: pytest.MonkeyPatch) -> None:
    intervals: list[float] = []

    def chosen(**given: str) -> tuple[str | None, str | None, str | None]:
        for name in NAMES:
            monkeypatch.setenv(name, "")  # so that it is put back, whatever is set meanwhile
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        use_all_cores(sharing=1, spin=spin)
        policy, spins, threads = (os.environ.get(name) for name in NAMES)
        return policy, spins, threads

    monkeypatch.setattr(sys, "setswitchinterval", intervals.append)
    spin = False
    assert chosen() == ("PASSIVE", None, str(available_cores()))
    spin = True
    assert chosen() == ("ACTIVE", "1000", str(available_cores()))
    assert intervals == [0.0005], "other threads send what a running batch has written"
    assert chosen(OMP_NUM_THREADS="3", OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="7") == ("PASSIVE", "7", "3")
