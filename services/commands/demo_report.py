"""What `cmt demo` found: every question with both answers, the two scores, the verdict; as a table and as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from services.terminal import Terminal

__all__ = ["DemoReport", "QuestionResult", "print_report", "shown_rows", "write_report"]

_MIN_SHARE_AFTER = 0.60
_MIN_RATIO = 3.0
_SHOWN_ROWS = 10  # of the table, spread over all questions


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """One sample question with both answers; an answer is right when it contains an expected one."""

    question: str
    expected: str
    before: str
    after: str
    source: str
    right_before: bool
    right_after: bool
    read: str = "memory"  # what the second answer was read from in the end


@dataclass(frozen=True, slots=True)
class DemoReport:
    """All questions, and the seconds of each phase."""

    rows: list[QuestionResult]
    seconds: dict[str, float]

    @property
    def before(self) -> int:
        """Questions answered right before the news."""
        return sum(row.right_before for row in self.rows)

    @property
    def after(self) -> int:
        """Questions answered right after the news."""
        return sum(row.right_after for row in self.rows)

    @property
    def from_text(self) -> int:
        """Questions whose second answer was read from text: the memory's stood in no source, or took two."""
        return sum(row.read == "text" for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether the memory knows at least 60% of the news, and three times what the LLM knew without it."""
        return self.after >= _MIN_SHARE_AFTER * len(self.rows) and self.after >= _MIN_RATIO * self.before


def shown_rows(rows: Sequence[QuestionResult], most: int = _SHOWN_ROWS) -> list[QuestionResult]:
    """At most `most` rows, evenly spread: neither the best nor the first ones."""
    if len(rows) <= most:
        return list(rows)
    return [rows[number * len(rows) // most] for number in range(most)]


def print_report(outcome: DemoReport, console: Terminal, every_row: bool) -> None:
    """The table (of `_SHOWN_ROWS`, or of every row), what its signs mean, and both scores."""
    rows = outcome.rows if every_row else shown_rows(outcome.rows)
    table = Table(title="The same frozen LLM, before and after the news", title_justify="left", expand=True)
    for name, ratio in (("question", 5), ("before", 4), ("after", 3), ("source read", 4), ("expected", 3)):
        table.add_column(name, ratio=ratio, overflow="fold" if name == "question" else "ellipsis")
    for row in rows:
        table.add_row(
            row.question,
            _shorten(row.before, 60),
            Text.assemble(("+ ", "green") if row.right_after else ("- ", "red"), row.after),
            row.source,
            row.expected,
        )
    console.print(table)
    console.print("+ the answer contains what was expected; - it does not")
    if len(rows) < len(outcome.rows):
        console.print(f"{len(rows)} of {len(outcome.rows)} questions are shown, every one with --all")
    total = len(outcome.rows)
    console.print(f"before the news: {outcome.before} of {total} questions right ({outcome.before / total:.0%})")
    console.print(f"after the news:  {outcome.after} of {total} questions right ({outcome.after / total:.0%})")
    if outcome.from_text:
        console.print(
            f"{outcome.from_text} of {total} answers were read from text: the memory's stood in no article, or took two"
        )
    if not outcome.passed:
        bar = f"{_MIN_SHARE_AFTER:.0%} after the news, and {_MIN_RATIO:g} times the before"
        console.print(f"below the bar: {bar}", style="red")


def write_report(path: Path, outcome: DemoReport) -> None:
    """All rows and figures as JSON."""
    figures = {
        "before": outcome.before,
        "after": outcome.after,
        "from_text": outcome.from_text,
        "passed": outcome.passed,
        "seconds": outcome.seconds,
    }
    path.write_text(
        json.dumps({**figures, "rows": [asdict(row) for row in outcome.rows]}, indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
