"""The CPU cores that this process may use, and how a model in a Ray actor gets them (before torch is loaded)."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

__all__ = ["available_cores", "use_all_cores"]

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_SPINS = "1000"
_SWITCH_S = 0.0005


def available_cores(quota_file: Path = _QUOTA) -> int:
    """Cores by affinity, or fewer where a container's CPU limit allows less: more threads than that only get throttled."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2
        return cores


def use_all_cores(gpus: float = 0.0, sharing: int = 1, *, spin: bool = False) -> None:
    """Sets OMP_NUM_THREADS to the available cores, divided by `sharing` actors; nothing on a GPU or where it was set.

    Ray tells an actor of one logical CPU to use one thread, which would slow an LLM on CPUs down manifold. Waiting threads
    sleep: the compressor and the LLM share the cores, and two that spin for long slow each other down tenfold. With `spin`
    they spin for some microseconds first, as an LLM's small products in a running batch need (docs/decisions/0023). Then other
    threads also get the interpreter within half a millisecond, not five: they send the tokens while the next ones are computed.
    """
    # ACTIVE with a count: under PASSIVE libgomp lets only the main thread's partners spin, whatever the count
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE" if spin else "PASSIVE")
    if spin:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
        sys.setswitchinterval(_SWITCH_S)
    if not gpus and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // max(1, sharing)))
