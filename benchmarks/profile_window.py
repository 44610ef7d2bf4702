"""Where the compressor's time goes: `make profile-window`, or python -m benchmarks.profile_window [--windows 8].

Full windows are read behind the encoding prefix as in service. Parts that are whole calls are timed by themselves; the pass
through the LLM is taken apart by PyTorch's profiler, whose own cost is in it. Medians; needs an idle machine to mean anything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bars import machine_line
from benchmarks.window_flops import checked_window_flops
from services.models import load_cmt
from services.settings import load_settings
from services.threads import use_all_cores

__all__ = ["GROUPS", "full_windows", "group_of", "median_ms"]

GROUPS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "_linear_pointwise", "mkldnn_linear", "matmul"),
    "attention": ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_softmax"),
    "norms": ("linalg_vector_norm", "rms_norm", "_fused_rms_norm", "rsqrt", "rsqrt_", "square_", "pow", "mean"),
    "elementwise": ("mul", "mul_", "add", "add_", "sub", "addcmul", "silu", "silu_", "neg", "div_", "masked_fill_"),
    "copies": ("copy_", "cat", "roll", "clone", "contiguous", "empty", "empty_strided", "resize_", "index", "fill_"),
}
_KIND = {operation: group for group, operations in GROUPS.items() for operation in operations}


def group_of(operation: str) -> str:
    """The row of the table that an operation of PyTorch's profiler belongs to."""
    return _KIND.get(operation.rpartition("::")[2], "other")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    use_all_cores()
    import torch
    from torch.profiler import ProfilerActivity, profile

    cmt = load_cmt(load_settings())
    backbone = cmt.backbone
    windows = full_windows(cmt, options.windows)
    ids = [cmt.tokens.ids(window.reading)[: cmt.config.window_tokens] for window in windows]
    batch, mask = cmt.tokens.padded(ids)
    prefix = cmt.encoding_prefix
    print(machine_line(f"{len(windows)} windows of {batch.shape[1]} tokens, {backbone.dtype}"))
    with torch.inference_mode():
        whole = median_ms(lambda: cmt.compress(windows), options.runs)
        read = median_ms(lambda: backbone.read(batch, mask, prefix), options.runs)
        rows = backbone.read(batch, mask, prefix)
        code: Any = getattr(cmt.format, "code", None)
        parts = {}
        if code is not None:
            encode = median_ms(lambda: code.encode(rows), options.runs)
            codes, lengths = code.encode(rows), mask.sum(dim=1).tolist()
            rounded: Any = cmt.format.rounded  # type: ignore[attr-defined]
            parts = {"encode": encode, "pack": median_ms(lambda: rounded(codes, lengths), options.runs)}
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(options.runs):
                backbone.read(batch, mask, prefix)
    spent = dict.fromkeys([*GROUPS, "other"], 0.0)
    for one in seen.key_averages():
        spent[group_of(one.key)] += one.self_cpu_time_total / 1e3 / options.runs
    flops = len(windows) * checked_window_flops(
        backbone.model.config, batch.shape[1], len(prefix), cmt.config.code_width if code is not None else 0
    )
    print(f"{'compress, whole':24} {whole:9.1f} ms   {len(windows) / whole * 1e3:.2f} windows/s, "
          f"{flops / whole / 1e6:.0f} GFLOP/s")  # fmt: skip
    for name, ms in {"pass through the LLM": read, **{f"  {name}": ms for name, ms in spent.items()}, **parts}.items():
        print(f"{name:24} {ms:9.1f} ms")


def full_windows(cmt: Any, count: int) -> list[Any]:
    """Windows of the model's full length, of invented text."""
    sentence = "The council of {place} said on day {day} that the new ferry line will carry {day}{day} people a week."
    places = ("Aarhus", "Varde", "Holm", "Lund", "Skive", "Tarm", "Ribe", "Odense")
    text = " ".join(sentence.format(place=places[i % 8], day=i) for i in range(20 * count))
    windows = cmt.windows("", text)
    return sorted(windows, key=lambda one: -len(one.text))[:count]


def median_ms(call: Callable[[], object], runs: int) -> float:
    """Median milliseconds of a call, after one to warm up."""
    call()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


if __name__ == "__main__":
    main()
