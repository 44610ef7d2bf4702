"""Where the parts of these tests come from; without vLLM they are skipped, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
# taken out of the environment: there is no such setting of the program under test
PYTHON = os.environ.pop("CMT_TEST_PYTHON", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An engine takes half a minute to start on an idle machine, and minutes on a busy one."""
    for item in items:
        item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def below() -> Path:
    """The interpreter of the environment in which `cmt` runs."""
    if not PYTHON:
        pytest.skip("CMT_TEST_PYTHON names no interpreter that has the `cmt` command: make test-vllm")
    return Path(PYTHON).absolute()
