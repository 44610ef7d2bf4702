"""Reads a moment as people write it: "2 days ago", "yesterday", "3h", or an ISO 8601 time."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from services.errors import SettingsError

__all__ = ["moment_of"]

_UNITS = {
    "s": timedelta(seconds=1),
    "sec": timedelta(seconds=1),
    "second": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "min": timedelta(minutes=1),
    "minute": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "hour": timedelta(hours=1),
    "d": timedelta(days=1),
    "day": timedelta(days=1),
    "w": timedelta(weeks=1),
    "week": timedelta(weeks=1),
    "month": timedelta(days=30),
    "year": timedelta(days=365),
}
_AGO = re.compile(r"(an?|\d+(?:\.\d+)?)\s*([a-z]+?)s?(?:\s+ago)?")


def moment_of(text: str, now: datetime) -> datetime:
    """The moment (aware) that `text` means at `now` (aware); times without a zone are in the zone of `now`.

    Raises SettingsError when it means nothing, or a time to come.
    """
    written = " ".join(text.lower().split())
    named = {"now": timedelta(0), "yesterday": timedelta(days=1), "last week": timedelta(weeks=1)}
    try:
        moment = now - named[written] if written in named else _ago(written, now) or _iso(text.strip(), now)
    except (ValueError, OverflowError):
        raise SettingsError(
            f'time {text!r} is not understood: write "2 days ago", "yesterday" or 2026-01-31T08:00'
        ) from None
    if moment > now:
        raise SettingsError(f"time {text!r} is still to come: the bank can only be asked about the past")
    return moment


def _ago(written: str, now: datetime) -> datetime | None:
    found = _AGO.fullmatch(written)
    if found is None:
        return None
    count, name = found.groups()
    unit = _UNITS.get(name)
    if unit is None:
        raise ValueError(name)
    return now - (1.0 if count in ("a", "an") else float(count)) * unit


def _iso(written: str, now: datetime) -> datetime:
    moment = datetime.fromisoformat(written)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=now.tzinfo)
