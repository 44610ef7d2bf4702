"""A picture of a run: losses and held-out loss of its stages, from their JSONL logs. Needs matplotlib."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cmt_core.errors import DataError, MissingPackageError

__all__ = ["plot_run", "read_log"]

_STAGES = ("prefix", "text", "code", "soft")


def read_log(path: Path) -> list[dict[str, float]]:
    """A stage's steps in order; a step that was trained twice counts as it was the last time."""
    rows: dict[int, dict[str, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not a line of a training log") from None
    return [rows[step] for step in sorted(rows)]


def plot_run(run: Path, output: Path) -> None:
    """Draws every stage of the run's folder into a PNG. Raises MissingPackageError, or DataError without any log."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError(
            "a plot needs matplotlib, which is not installed: pip install 'cmt-memory[plot]'"
        ) from None
    logs = {name: read_log(path) for name in _STAGES if (path := run / name / "log.jsonl").exists()}
    if not logs:
        raise DataError(f"{run} has no log of any stage ({', '.join(_STAGES)})")
    figure = Figure(figsize=(5 * len(logs), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for column, (name, rows) in enumerate(logs.items(), 1):
        _draw(figure.add_subplot(1, len(logs), column), name, rows)
    figure.savefig(output, dpi=120)


def _draw(axes: Any, name: str, rows: list[dict[str, float]]) -> None:
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=0.8, label="training")
    held = [row for row in rows if "held_out" in row]
    if held:
        axes.plot(
            [row["step"] for row in held], [row["held_out"] for row in held], marker="o", label="held out, answer"
        )
    axes.set(title=name, xlabel="step", ylabel="loss (nats)")
    axes.legend()
