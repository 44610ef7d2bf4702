"""The progress bar of a training run: stage, loss, tokens a second, and the time left in the stage."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from services.terminal import Terminal

__all__ = ["TrainingBar"]


class TrainingBar:
    """One line a stage; a stage that goes on starts where it was."""

    def __init__(self, console: Terminal) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[tokens]} tokens/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def on_step(self, stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        """Moves the stage's line on; the recipe calls this after each step."""
        held = f" (held out {figures['held_out']:.3f})" if "held_out" in figures else ""
        shown: dict[str, Any] = {
            "loss": f"{figures['loss']:.3f}{held}" if "loss" in figures else "-",
            "tokens": f"{figures.get('tokens_per_s', 0):,.0f}",
        }
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=steps, completed=step, **shown)
        self._progress.update(self._tasks[stage], completed=step + 1, **shown)

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
