"""The demo's verdict, and what is printed of it."""

from __future__ import annotations

import re

import pytest

from services.commands.demo_report import DemoReport, QuestionResult, print_report, shown_rows
from services.terminal import Terminal


def _report(total: int, before: int, after: int) -> DemoReport:
    return DemoReport([QuestionResult("q", "a", "", "", "", i < before, i < after) for i in range(total)], {})


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [(0, 60, True), (0, 59, False), (21, 60, False), (20, 60, True), (100, 100, False), (0, 0, False)],
)
def test_verdict_needs_sixty_percent_and_three_times_closed_book(before: int, after: int, passed: bool) -> None:
    assert _report(100, before, after).passed is passed


def _printed(total: int, every_row: bool) -> str:
    rows = [QuestionResult(f"question {i}?", "a", "", "", "", False, i % 2 == 0) for i in range(total)]
    console = Terminal(width=120, record=True, quiet=False)
    with console.capture() as captured:
        print_report(DemoReport(rows, {}), console, every_row)
    return captured.get()


def test_ten_rows_from_all_over_the_table_are_printed_and_all_on_request() -> None:
    few, every = _printed(55, False), _printed(55, True)
    assert len(re.findall(r"question \d+\?", few)) == 10
    assert all(f"question {number}?" in every for number in range(55))
    assert "10 of 55 questions are shown, every one with --all" in few
    assert "--all" not in every


def test_signs_of_the_table_are_explained_beside_the_scores() -> None:
    printed = _printed(12, False)
    assert "+ the answer contains what was expected; - it does not" in printed
    assert "after the news:  6 of 12 questions right (50%)" in printed


@pytest.mark.parametrize("total", [0, 1, 10, 11, 55])
def test_rows_that_are_shown_are_spread_and_never_twice(total: int) -> None:
    rows = [QuestionResult(str(i), "", "", "", "", False, False) for i in range(total)]
    shown = [int(row.question) for row in shown_rows(rows)]
    assert len(shown) == min(total, 10) == len(set(shown))
    assert shown == sorted(shown)
    assert not shown or (shown[0] < 6 and shown[-1] >= total - 6)
