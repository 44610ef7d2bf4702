"""Reads the times of feeds; one that is understood only in part is none."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from dateutil import parser

__all__ = ["read_time"]

_MAX_CHARS = 80
# Hours east of Greenwich. Names that mean several zones (IST, AST, AMT, GST, ...) are left out; EST to PDT are RFC 822's.
_HOURS = {
    **dict.fromkeys(("UT", "UTC", "GMT", "Z", "WET"), 0.0),
    **{"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7},
    **{"AKST": -9, "AKDT": -8, "HST": -10, "NST": -3.5, "NDT": -2.5, "ADT": -3, "BRT": -3, "ART": -3, "CLT": -4},
    **{
        "WEST": 1,
        "BST": 1,
        "CET": 1,
        "MEZ": 1,
        "MET": 1,
        "CEST": 2,
        "MESZ": 2,
        "MEST": 2,
        "SAST": 2,
        "CAT": 2,
        "WAT": 1,
    },
    **{
        "EET": 2,
        "EEST": 3,
        "EAT": 3,
        "MSK": 3,
        "TRT": 3,
        "PKT": 5,
        "NPT": 5.75,
        "ICT": 7,
        "WIB": 7,
        "WITA": 8,
        "WIT": 9,
    },
    **{"HKT": 8, "SGT": 8, "MYT": 8, "PHT": 8, "PHST": 8, "AWST": 8, "JST": 9, "KST": 9, "ACST": 9.5, "ACDT": 10.5},
    **{"AEST": 10, "AEDT": 11, "CHST": 10, "NZST": 12, "NZDT": 13},
}
_ISO = re.compile(r"\d{4}-?\d\d-?\d\d([Tt ]\d\d.*)?|\d{4}-W\d\d-\d.*", re.ASCII)
_YEAR_FIRST = re.compile(r"\d{4}\D")
_MILITARY = re.compile(r"\s[A-Ya-y]$")  # RFC 822's one-letter zones, which RFC 2822 found to be used either way round
_IANA = re.compile(r"\s*\[?\b([A-Z][A-Za-z]+(?:/[A-Z][A-Za-z_-]+)+)\]?$")
_SHORT_ZONE = re.compile(r"\b[a-z]{3,5}$")
_COMMENT = re.compile(r"\([^()]*\)|\[UTC\]")  # RFC 822: "+0100 (CET)"; Java: "Z[UTC]"
_FROM_GREENWICH = re.compile(r"\b(?:GMT|UTC|UT) ?([+-]) ?(\d{1,2})(?::?(\d\d))?\s*$")
_HALF_OF_DAY = re.compile(r"(?<=[\d\s])([AaPp])\.?\s?[Mm]\b\.?")
_TWO_DAYS = (datetime(2024, 1, 1), datetime(2023, 2, 2))  # two dates that differ in year, month and day


def read_time(text: str) -> datetime | None:
    """The moment that a feed's time means, in UTC; None for a text that is no complete date, or not understood as a whole.

    ISO 8601 and RFC 822 with what people make of it: 12-hour clocks, names of zones, `GMT+1`, years of two digits. A time
    without a zone counts as UTC, a date as its midnight. A name of a zone that is unknown or means several, and a date that
    may be month-first or day-first, are not understood.
    """
    text = " ".join(_COMMENT.sub(" ", text[: _MAX_CHARS + 1]).split())
    if not text or len(text) > _MAX_CHARS or not text.isascii():
        return None
    try:
        return _utc(_in_place(text))
    except (ValueError, OverflowError, TypeError, AttributeError, LookupError, ArithmeticError):
        return None  # what dateutil raises for odd texts is not always its ParserError


def _in_place(text: str) -> datetime | None:
    """The time of a text that may end with the name of a place: "2026-11-25T20:57:00+01:00[Europe/Paris]"."""
    place = _IANA.search(text)
    if place is None:
        return _iso(text) or _spoken(text)
    time = _in_place(text[: place.start()])
    return time.replace(tzinfo=ZoneInfo(place[1])) if time and time.tzinfo is None else time


def _iso(text: str) -> datetime | None:
    if not _ISO.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        return None


def _spoken(text: str) -> datetime | None:
    if text.isdigit() or _MILITARY.search(text):  # seconds, or digits of a date without order
        return None
    text = _SHORT_ZONE.sub(lambda zone: zone[0].upper(), text)
    text = _HALF_OF_DAY.sub(r"\1m", _FROM_GREENWICH.sub(_offset, text))
    # What the text does not say is taken from the default: only what two defaults agree on was said. And only what the
    # two orders of day and month agree on was said clearly.
    first, other = (parser.parse(text, default=day, tzinfos=_zone) for day in _TWO_DAYS)
    swapped = (
        first if _YEAR_FIRST.match(text) else parser.parse(text, default=_TWO_DAYS[0], tzinfos=_zone, dayfirst=True)
    )
    return first if first == other == swapped else None


def _offset(match: re.Match[str]) -> str:
    """`GMT+1` as +01:00: the other way round than POSIX has it."""
    return f" {match[1]}{int(match[2]):02}:{match[3] or '00'}"


def _zone(name: str | None, seconds: int | None) -> tzinfo | None:
    if seconds is not None and not name:
        return timezone(timedelta(seconds=seconds))
    if name is None:
        return None
    if name not in _HOURS or seconds:
        raise ValueError(f"unknown zone {name}")
    return timezone(timedelta(hours=_HOURS[name]))


def _utc(time: datetime | None) -> datetime | None:
    if time is None:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
