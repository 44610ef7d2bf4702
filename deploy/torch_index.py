"""Prints pip's option for the CPU build of torch where that is what this machine wants and can have; else nothing.

    pip install $(python deploy/torch_index.py) cmt-memory

On Linux PyPI's torch is the CUDA build, several GB with its libraries. PyTorch has an index of its own with the CPU build;
it is taken where there is no NVIDIA driver and the index answers within 3 seconds. `TORCH_INDEX=URL` names another,
`TORCH_INDEX=` none.
Needs Python's standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import sys
import urllib.error
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANSWERS_WITHIN_S = 3.0
_DRIVER = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))


def has_nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA driver loaded."""
    return any(path.exists() for path in _DRIVER)


def answers(index: str, within_s: float = ANSWERS_WITHIN_S) -> bool:
    """Whether a package index has a page for torch and sends it in time."""
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=within_s) as reply:
            return b"torch-" in reply.read(65536)
    except (OSError, ValueError):
        return False


def option(index: str | None, driver: bool, system: str) -> str:
    """pip's option for the index, empty where PyPI's own build is the right one or the only one to be had."""
    if index is None:
        if driver or system != "Linux":
            return ""
        index = CPU_INDEX
    return f"--extra-index-url {index}" if index and answers(index) else ""


if __name__ == "__main__":
    chosen = option(os.environ.get("TORCH_INDEX"), has_nvidia_driver(), platform.system())
    print(chosen)
    what = (
        "the CPU build of torch (0.2 GB)"
        if chosen
        else "PyPI's torch (on Linux with CUDA: 3 GB to download, 5 GB on disk)"
    )
    print(f"installing {what}", file=sys.stderr)
