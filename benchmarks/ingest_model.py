"""The real compressor alone: windows a second, and its share of the device's measured matmul peak in the model's type."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.bars import Figure, Report
from benchmarks.cpu_kind import cpu_kind
from benchmarks.device_speed import best_seconds, long_texts, matmul_flops
from benchmarks.window_flops import checked_window_flops
from services.settings import load_settings

__all__ = ["measure_model", "measure_peers"]

_BAR_SHARE = 0.48 if cpu_kind() == "AMX" else 0.6  # AMX multiplies so fast that what is elementwise counts more
_WINDOWS = 8  # one batch of 2,048 tokens, what a CPU reads at once by default; the best of several, as for the peak
_GPU_WINDOWS = 128


def measure_model(report: Report) -> None:
    """Adds windows/s and the share of the peak, on full-length windows; needs the LLM, which is fetched once."""
    from cmt_core.text.windows import Window
    from services.models import load_cmt

    model = load_cmt(load_settings())
    device = model.backbone.device
    text = long_texts(model.config.window_tokens)
    windows: list[Window] = [one for part in text for one in model.windows("", part)]
    count = _WINDOWS if "cpu" in str(device) else _GPU_WINDOWS
    windows = sorted(windows, key=lambda one: -len(one.text))[:count]
    model.compress(windows)  # the warm-up
    tokens = sum(len(model.tokens.ids(window.reading)) for window in windows) / len(windows)
    flops = len(windows) * checked_window_flops(
        model.backbone.model.config, round(tokens), len(model.encoding_prefix), model.config.code_width
    )
    seconds = best_seconds(lambda: model.compress(windows), device)
    peak = matmul_flops(device, model.backbone.dtype)
    share = flops / seconds / peak
    report.facts["device"] = str(device)
    on = cpu_kind() if "cpu" in str(device) else str(device)
    note = f"{len(windows)} windows of {tokens:.0f} tokens on {on}, {model.backbone.dtype}"
    report.add(Figure("windows, real model", len(windows) / seconds, "windows/s", note=note))
    name = str(model.backbone.dtype).removeprefix("torch.")
    report.add(
        Figure(f"matmul peak, {name}", peak / 1e9, "GFLOP/s", note="4096 x 1536 by 1536 x 1536, best of several")
    )
    note = f"{flops / len(windows) / 1e9:.1f} GFLOP a window, by shape"
    report.add(Figure("share of the peak, real model", share, "", _BAR_SHARE, note=note))
    keys_s = best_seconds(lambda: model.document_keys(windows), device)
    report.add(Figure("windows with their retrieval keys", len(windows) / (seconds + keys_s), "windows/s"))


def measure_peers(report: Report, folder: Path) -> None:
    """Adds the peers' way: sentence-transformers MiniLM vectors into LanceDB, with no memory for an LLM."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        report.facts["peers"] = "sentence-transformers is not installed: pip install -e '.[bench]'"
        print(report.facts["peers"])
        return
    import lancedb

    from cmt_core.llm.model_source import resolve_model

    settings = load_settings().model
    encoder = SentenceTransformer(
        str(resolve_model(settings.retriever, settings.cache_dir.expanduser(), lambda line: None)), device="cpu"
    )
    texts = long_texts(256)
    table = None
    started = time.perf_counter()
    for start in range(0, len(texts), 32):
        batch = texts[start : start + 32]
        rows = [
            {"text": text, "vector": vector}
            for text, vector in zip(batch, encoder.encode(batch, show_progress_bar=False), strict=True)
        ]
        if table is None:
            table = lancedb.connect(str(folder / "peers")).create_table("documents", rows)
            started, done = time.perf_counter(), 0
            continue
        table.add(rows)
        done += len(batch)
    rate = done / (time.perf_counter() - started)
    report.add(Figure("the peers' way: MiniLM + LanceDB add", rate, "windows/s", note="a vector each, no memory"))
