"""Which written times are understood, and that half-understood ones are not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.stream.times import EpochUnit, is_beyond_calendars, moment_of

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
NOON_S = int(NOON.timestamp())


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-25T12:00:00Z",
        "2026-11-25t12:00:00z",
        "2026-11-25 12:00:00+00:00",
        "2026-11-25T14:00:00+02:00",
        "2026-11-25T14:00:00+0200",
        "2026-11-25T14:00:00.000+0200",
        "2026-11-25T14:00:00+02",
        "2026-11-25T12:00Z",
        "2026-11-25T17:30+0530",
        "2026-11-25 04:00 -08:00",
        "2026-11-25T12:00:00,000Z",
        "2026-11-25T12:00:00.000000000Z",
        "2026-11-25 12:00:00 UTC",
        "2026-11-25 12:00:00 +0000 UTC",
        "2026-11-25T13:00:00+01:00[Europe/Paris]",
        "2026-11-25T12:00:00Z[UTC]",
        " 2026-11-25T12:00:00Z\n",
    ],
)
def test_date_and_time_with_an_offset_is_understood(text: str) -> None:
    moment = moment_of(text)
    assert moment == NOON
    assert moment is not None
    assert moment.tzinfo is UTC


def test_fractions_are_kept_to_the_microsecond() -> None:
    assert moment_of("2026-11-25T12:00:00.25Z") == NOON.replace(microsecond=250_000)
    assert moment_of("2026-11-25T12:00:00.123456789Z") == NOON.replace(microsecond=123_456)


@pytest.mark.parametrize(
    "written",
    [
        *(
            "2026-11-25T12:00:00",
            "2026-11-25",
            "12:00",
            "2026-11-25T12:00:00 CET",
            "2026-11-25T12:00:00+1",
            "tomorrow",
            "",
        ),
        *("2026-02-30T12:00:00Z", "2026-11-25T25:00:00Z", "2026-11-25T12:00:00+25:00", "0001-01-01T00:00:00+01:00"),
        *("0000-01-01T00:00:00Z", "\u0662\u0660\u0662\u0666-11-25T12:00:00Z", "2026-11-25T12:00:00Z\x00"),
        *(True, False, None, [], {}, {"$date": 1}, float("nan"), float("inf"), -float("inf")),
        *("9" * 5000, "1" * 25, "-", "1.", "1e9", "0x10", "20261125120000", "20261125"),
        *(0, 1, -1, NOON_S * 100, 253_402_300_799, 253_402_300_799_999, 10**30, 10**4000, 1e300),
    ],
)
def test_time_that_is_not_certain_is_none(written: Any) -> None:
    assert moment_of(written) is None


@pytest.mark.parametrize("number", [NOON_S, NOON_S * 10**3, NOON_S * 10**6, NOON_S * 10**9])
def test_numbers_are_told_apart_by_magnitude(number: int) -> None:
    assert moment_of(number) == moment_of(str(number)) == moment_of(float(number)) == NOON


def test_seconds_may_have_a_fraction() -> None:
    assert moment_of(NOON_S + 0.25) == moment_of(f"{NOON_S}.25") == NOON.replace(microsecond=250_000)
    assert moment_of(NOON_S * 10**9 + 123_456_789) == NOON.replace(microsecond=123_456)


@given(st.integers(315_532_800, 4_102_444_799))
def test_from_1980_to_2100_no_number_of_one_unit_is_taken_for_another(seconds: int) -> None:
    moment = datetime.fromtimestamp(seconds, UTC)
    assert {moment_of(seconds * per) for per in (1, 10**3, 10**6, 10**9)} == {moment}


@pytest.mark.parametrize(
    ("unit", "number", "expected"),
    [
        ("s", 0, datetime(1970, 1, 1, tzinfo=UTC)),
        ("s", -86_400, datetime(1969, 12, 31, tzinfo=UTC)),
        ("s", 253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("ms", 1, datetime(1970, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)),
        ("us", NOON_S * 10**6, NOON),
        ("ns", str(NOON_S * 10**9), NOON),
        ("d", 20_782, datetime(2026, 11, 25, tzinfo=UTC)),
        ("ms", "2026-11-25T12:00:00Z", NOON),
        ("d", 10**9, None),
        ("s", 10**18, None),
        ("s", 1e308, None),
    ],
)
def test_a_unit_that_is_set_takes_any_number_that_a_date_can_hold(
    unit: EpochUnit, number: Any, expected: datetime | None
) -> None:
    assert moment_of(number, unit) == expected


@given(
    st.integers() | st.floats() | st.text(max_size=40) | st.from_regex(r"[0-9T:Z+. -]{0,30}"),
    st.sampled_from(["auto", "d", "s", "ms", "us", "ns"]),
)
def test_nothing_that_is_written_raises(written: Any, unit: EpochUnit) -> None:
    moment = moment_of(written, unit)
    assert moment is None or moment.tzinfo is UTC


@pytest.mark.parametrize(
    "written",
    [
        "0001-01-01T00:00:00+01:00",
        " 0001-01-01 00:00+0100 ",
        "0000-02-29T12:00:00Z",
        "9999-12-31T23:59:59-05:00",
        "9999-12-31T23:59:59.999999999 -00:01",
    ],
)
def test_time_that_lacks_nothing_outside_of_the_calendar_is_told_apart(written: str) -> None:
    assert moment_of(written) is None
    assert is_beyond_calendars(written)


@pytest.mark.parametrize(
    "written",
    [
        *("0001-01-01T00:00:00Z", "9999-12-31T23:59:59+05:00", "2026-11-25T12:00:00Z"),
        *(
            "0000-00-00T00:00:00Z",
            "0001-02-29T00:00:00+23:00",
            "9999-12-31T23:59:59",
            "0001-01-01",
            "10000-01-01T00:00:00Z",
        ),
        *("0001-01-01T00:00:00+25:00", "yesterday", 253_402_300_800, None, {"a": 1}),
    ],
)
def test_other_times_are_inside_or_not_understood(written: object) -> None:
    assert not is_beyond_calendars(written)
