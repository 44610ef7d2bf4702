"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from services.commands.moments import moment_of
from services.errors import SettingsError

NOW = datetime(2026, 5, 10, 12, 0, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("2 days ago", NOW - timedelta(days=2)),
        ("an hour ago", NOW - timedelta(hours=1)),
        ("90s", NOW - timedelta(seconds=90)),
        ("1.5 h ago", NOW - timedelta(minutes=90)),
        ("3 weeks ago", NOW - timedelta(weeks=3)),
        ("Yesterday", NOW - timedelta(days=1)),
        ("2026-05-01", datetime(2026, 5, 1, tzinfo=NOW.tzinfo)),
        ("2026-05-01T08:30", datetime(2026, 5, 1, 8, 30, tzinfo=NOW.tzinfo)),
        ("2026-05-01T08:30:00Z", datetime(2026, 5, 1, 8, 30, tzinfo=UTC)),
    ],
)
def test_moment_is_read(text: str, expected: datetime) -> None:
    assert moment_of(text, NOW) == expected
    assert moment_of(text, NOW).tzinfo is not None


@pytest.mark.parametrize("text", ["", "soon", "2 fortnights ago", "2026-13-01", "99999999999 years ago", "ago"])
def test_what_means_nothing_is_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match="not understood") as refused:
        moment_of(text, NOW)
    assert "\n" not in str(refused.value)


def test_future_is_refused() -> None:
    with pytest.raises(SettingsError, match="still to come"):
        moment_of("2027-01-01", NOW)
