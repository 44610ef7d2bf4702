"""The benchmarks' figures as SVG files for docs/, drawn from the results that the benchmarks write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["plot_bank", "plot_query"]

_COLOURS = ("#0f6e66", "#b7791f", "#7a818a", "#1c1f23")
_MODES = {"memory": _COLOURS[0], "rag": _COLOURS[1], "closed": _COLOURS[2]}
_STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "cmt",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot_bank(path: Path, sizes: Sequence[Mapping[str, Any]], row_bytes: Mapping[str, float]) -> None:
    """Upserts a second and search times against rows, and the bytes of a row by the memory's encoding."""
    with mpl.rc_context(_STYLE):
        upserts, searches, encodings = _panels(3)
        payloads = list(dict.fromkeys(size["payload_bytes"] for size in sizes))
        for payload, colour in zip(payloads, _COLOURS, strict=False):
            own = sorted((one for one in sizes if one["payload_bytes"] == payload), key=lambda one: int(one["rows"]))
            label = f"{payload / 1024:.0f} kB a memory"
            _line(upserts, own, "upsert_rows_s", label, colour)
            _line(searches, own, "search_p50_ms", f"p50, {label}", colour)
            _line(searches, own, "search_p99_ms", f"p99, {label}", colour, "--")
        for axes, title in ((upserts, "upserts, rows a second"), (searches, "search by key, ms")):
            axes.set(title=title, xlabel="rows of the bank", xscale="log", ylim=(0, None))
            axes.legend(frameon=False)
        _bars(encodings, "bytes a row, by encoding of the memory", list(row_bytes.items()), [_COLOURS[0]])
        _save(path, upserts)


def plot_query(path: Path, result: Mapping[str, Any]) -> None:
    """Time to the first token and answers a second by mode and clients, and the replica's memory over time."""
    figures, steady = result["figures"], result["steady"]
    with mpl.rc_context(_STYLE):
        first, answers, *memory = _panels(3 if steady else 2)
        colours = [_MODES[figure["mode"]] for figure in figures]
        for axes, title, name in (
            (first, "time to the first token, median, s; by mode and clients", "first_token_p50_s"),
            (answers, "answers a second, by mode and clients", "answers_per_s"),
        ):
            _bars(axes, title, [(_label(figure), figure[name]) for figure in figures], colours)
        for axes in memory:
            minutes = [at / 60 for at, _ in steady["rss_bytes"]]
            axes.plot(minutes, [size / 1e9 for _, size in steady["rss_bytes"]], color=_COLOURS[0])
            axes.set(title="the replica's memory at 80% load, GB", xlabel="minutes", ylim=(0, None))
        _save(path, first)


def _label(figure: Mapping[str, Any]) -> str:
    k = f" k={figure['k']}" if figure["mode"] != "closed" else ""
    return f"{figure['mode']}{k}, {figure['clients']}"


def _panels(count: int) -> list[Axes]:
    figure = Figure(figsize=(8, 3.2 * count))
    FigureCanvasSVG(figure)
    return list(figure.subplots(count, 1))


def _line(axes: Axes, own: Sequence[Mapping[str, Any]], name: str, label: str, colour: str, style: str = "-") -> None:
    axes.plot([one["rows"] for one in own], [one[name] for one in own], style, marker="o", color=colour, label=label)


def _bars(axes: Axes, title: str, values: Sequence[tuple[str, float]], colours: Sequence[str]) -> None:
    drawn = axes.barh([label for label, _ in values], [value for _, value in values], color=colours)
    axes.bar_label(drawn, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", padding=4)
    axes.invert_yaxis()
    axes.set_title(title)


def _save(path: Path, axes: Axes) -> None:
    figure = axes.figure
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
