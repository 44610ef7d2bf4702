"""How fast a device multiplies, and how long a call takes there: what every share of a peak is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["best_seconds", "long_texts", "matmul_flops", "settled"]

_REPEATS = 6
_SIZES = {"cpu": (4096, 1536, 1536), "cuda": (8192, 8192, 8192)}


def best_seconds(call: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """The shortest of several calls, the device's own work included."""
    times = []
    for _ in range(repeats):
        settled(device)
        started = time.perf_counter()
        call()
        settled(device)
        times.append(time.perf_counter() - started)
    return min(times)


def settled(device: torch.device) -> None:
    """Waits until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(device: torch.device, dtype: torch.dtype, size: tuple[int, int, int] | None = None) -> float:
    """The best that one large matrix product (M x K by K x N) in `dtype` reaches on random numbers, in FLOP/s."""
    M, K, N = size or _SIZES[device.type]
    a = torch.randn(M, K, dtype=dtype, device=device)
    b = torch.randn(K, N, dtype=dtype, device=device)
    a @ b
    return 2.0 * M * K * N / min(best_seconds(lambda: a @ b, device) for _ in range(5))


def long_texts(tokens: int, count: int = 256) -> list[str]:
    """Invented texts of about `tokens` tokens each, all different."""
    sentence = "The council of {place} said on day {day} that the new ferry line will carry {day}{day} people a week."
    places = ("Aarhus", "Varde", "Holm", "Lund", "Skive", "Tarm", "Ribe", "Odense")
    parts = max(1, tokens // 24)
    return [
        " ".join(sentence.format(place=places[(i + j) % 8], day=i * 7 + j) for j in range(parts)) for i in range(count)
    ]
