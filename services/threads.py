"""Gives a model in a Ray actor the CPU cores that it may use; to be called before torch is loaded."""

from __future__ import annotations

import os

__all__ = ["use_all_cores"]


def use_all_cores(gpus: float = 0.0, sharing: int = 1) -> None:
    """Sets OMP_NUM_THREADS to this machine's cores, divided by `sharing` actors; nothing on a GPU or where it was set.

    Ray tells an actor of one logical CPU to use one thread, which would slow an LLM on CPUs down manifold. Waiting threads
    sleep instead of spinning: the compressor and the LLM share the cores, and two that spin slow each other down tenfold.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not gpus and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // max(1, sharing)))
