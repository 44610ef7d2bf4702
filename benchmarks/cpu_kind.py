"""The kind of this machine's CPU, which every figure of speed names: kinds differ tenfold at the same number of cores."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["cpu_kind"]

_KINDS = (  # the best one that a CPU has
    ("AMX", {"amx_tile", "amx_bf16"}),
    ("AVX-512 bf16", {"avx512f", "avx512_bf16"}),
    ("AVX-512", {"avx512f"}),
    ("AVX2", {"avx2"}),
)


def cpu_kind(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """`AMX`, `AVX-512 bf16`, `AVX-512` or `AVX2`, by what the kernel reports; the architecture where it reports none of them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return next((kind for kind, needed in _KINDS if needed <= flags), platform.machine())
