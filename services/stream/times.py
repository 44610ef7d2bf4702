"""Reads the times that producers write: RFC 3339 and its relatives with an offset, and numbers since 1970."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

__all__ = ["EpochUnit", "is_beyond_calendars", "moment_of"]

EpochUnit = Literal["auto", "d", "s", "ms", "us", "ns"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# From 1980 to 2100 the four units share no number, and the usual words for never (0, the year 9999) are in no range.
_FIRST_S, _LAST_S = 315_532_800, 4_102_444_800
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,9})?", re.ASCII)
_EDGE_YEARS = ("0000", "0001", "9999")
_DATE_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?) ?([Zz]|UTC|[+-]\d\d(?::?\d\d)?)(?: UTC)?(?:\[[\w/+-]+\])?",
    re.ASCII,
)


def moment_of(written: Any, unit: EpochUnit = "auto") -> datetime | None:
    """The moment (UTC) that a JSON value means, None when that is not certain: no offset, no such day, out of range.

    A number, or a text of digits, counts `unit`s since 1970; `auto` tells s, ms, us and ns by magnitude, from 1980 to
    2100. A text is a date and a time with an offset: seconds may be missing, the offset be Z, UTC, +00, +0000 or +00:00.
    """
    if isinstance(written, str):
        text = written.strip()
        if not _NUMBER.fullmatch(text):
            return _date_time(text)
        written = float(text) if "." in text else int(text)
    if isinstance(written, bool) or not isinstance(written, int | float):
        return None
    return _since_epoch(written, unit)


def is_beyond_calendars(written: Any) -> bool:
    """Whether a JSON value is a time that lacks nothing, and yet its moment (UTC) is not in the years 1 to 9999.

    Such is `0001-01-01T00:00:00+01:00`, which some programs write for "no time": it is in the year 0.
    """
    found = _DATE_TIME.fullmatch(written.strip()) if isinstance(written, str) else None
    if found is None or moment_of(written) is not None:
        return False
    date, time, offset = found.groups()
    like = f"{2000 + int(date[:4]) % 400}{date[4:]}"  # the calendar repeats after 400 years
    return date[:4] in _EDGE_YEARS and _date_time(f"{like}T{time}{offset}") is not None


def _date_time(text: str) -> datetime | None:
    found = _DATE_TIME.fullmatch(text)
    if found is None:
        return None
    date, time, offset = found.groups()
    try:
        return datetime.fromisoformat(f"{date}T{time}{'Z' if offset == 'UTC' else offset.upper()}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _since_epoch(number: float, unit: EpochUnit) -> datetime | None:
    if isinstance(number, float) and not math.isfinite(number):
        return None
    if unit == "auto":
        for per_second in _PER_SECOND.values():
            if _FIRST_S * per_second <= number < _LAST_S * per_second:
                return _moved(number, 10**6, per_second)
        return None
    return _moved(number, 86_400 * 10**6, 1) if unit == "d" else _moved(number, 10**6, _PER_SECOND[unit])


def _moved(number: float, us: int, per: int) -> datetime | None:
    """`number * us / per` microseconds after 1970, without a float's loss where the number is whole."""
    try:
        after_us = number * us // per if isinstance(number, int) else round(number * us / per)
        return _EPOCH + timedelta(microseconds=after_us)
    except OverflowError:
        return None
