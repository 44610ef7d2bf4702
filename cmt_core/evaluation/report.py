"""Writes an experiment's figures as a Markdown table, JSON and, with matplotlib, a PNG plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmt_core.errors import ConfigError

__all__ = ["markdown_table", "write_experiment"]


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table with the first row's keys as its head; None is an empty cell."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *[[_cell(name, row[name]) for name in head] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_experiment(
    folder: Path, name: str, points: Sequence[Any], *, x: str, y: str, x_label: str, about: dict[str, Any]
) -> list[Path]:
    """Writes name.md, name.json and name.png into `folder`; the paths written.

    Without an `x` there is no plot. It has a line of `y` over `x` for each system, or a bar for each where all have one point.

    points: dataclasses with the fields `system`, x and y. Without matplotlib the plot is left out. Raises ConfigError when the
    folder can't be written.
    """
    rows = [dataclasses.asdict(point) for point in points]
    text = f"# {name}\n\n{', '.join(f'{key} {value}' for key, value in about.items())}\n\n{markdown_table(rows)}"
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(text, encoding="utf-8")
        paths[1].write_text(json.dumps({"about": about, "points": rows}, indent=2) + "\n", encoding="utf-8")
        if x and _plot(folder / f"{name}.png", rows, x, y, x_label):
            paths.append(folder / f"{name}.png")
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror or error}") from None
    return paths


def _plot(path: Path, rows: Sequence[dict[str, Any]], x: str, y: str, x_label: str) -> bool:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 4))
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    y_label = y.replace("_", " ").upper() if len(y) < 3 else y.replace("_", " ")
    systems = list(dict.fromkeys(row["system"] for row in rows))
    axes.grid(alpha=0.3)
    if len(systems) == len(rows) > 1:
        axes.barh(systems, [row[y] for row in rows])
        axes.invert_yaxis()  # the first row on top, as in the table
        axes.set_xlabel(y_label)
    else:
        _lines(axes, rows, systems, x, y)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def _lines(axes: Any, rows: Sequence[dict[str, Any]], systems: Sequence[str], x: str, y: str) -> None:
    for name in systems:
        own = [row for row in rows if row["system"] == name]
        axes.plot([row[x] for row in own], [row[y] for row in own], marker="o", label=name)
    values = [row[x] for row in rows]
    if min(values) > 0 and max(values) >= 20 * min(values):
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend()


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if name.endswith("_nats") else f"{value:.1f}"
    return str(value)
