"""The demo's verdict."""

from __future__ import annotations

import pytest

from services.commands.demo import DemoReport, QuestionResult


def _report(total: int, before: int, after: int) -> DemoReport:
    return DemoReport([QuestionResult("q", "a", "", "", "", i < before, i < after) for i in range(total)], {})


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [(0, 60, True), (0, 59, False), (21, 60, False), (20, 60, True), (100, 100, False), (0, 0, False)],
)
def test_verdict_needs_sixty_percent_and_three_times_closed_book(before: int, after: int, passed: bool) -> None:
    assert _report(100, before, after).passed is passed
