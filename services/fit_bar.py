"""The progress bar of a fit: one line a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from services.terminal import Terminal

__all__ = ["fit_progress"]


@contextmanager
def fit_progress(console: Terminal) -> Iterator[Callable[[str, int, int], None]]:
    """What a fit calls with stage, done and total; a log file gets nothing, since a bar would fill it with its own past."""
    if not console.is_terminal:
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bar:

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield on_progress
