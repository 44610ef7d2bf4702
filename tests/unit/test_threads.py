"""The cores of a process, in a container and out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.threads import available_cores

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
