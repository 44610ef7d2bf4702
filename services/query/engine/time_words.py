"""What a question says about when: "latest", "yesterday", "since Monday", "on 12 November"; English alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

__all__ = ["TimeWish", "time_wish"]

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_A_MONTH = "|".join(_MONTHS)
_UNITS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=30)}
_LATEST = re.compile(r"\b(?:latest|newest|most recent|any news|breaking|right now|currently|these days)\b")
_LAST = re.compile(r"\b(?:in|over|within|during) the (?:last|past) (?:(\d{1,3}) )?(hour|day|week|month)s?\b")
_ON_DAY = re.compile(rf"\b(?P<since>since |after )?(?:last |on )?(?P<day>{'|'.join(_DAYS)})\b")
_ON_DATE = re.compile(
    rf"\b(?P<since>since |after )?(?:on |of )?(?:the )?(?:(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month>{_A_MONTH})"
    rf"|(?P<month2>{_A_MONTH}) (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?)(?:,? (?P<year>\d{{4}}))?\b"
)
_SPANS = {"today": (0, 1), "tonight": (0, 1), "this morning": (0, 1), "yesterday": (1, 1), "last night": (1, 2)}


@dataclass(frozen=True, slots=True)
class TimeWish:
    """When the news that are asked for came out: from `since` to `until`, or the later the better (`latest`)."""

    since: datetime | None = None
    until: datetime | None = None
    latest: bool = False

    def share(self, published_at: datetime | None, newest: datetime | None) -> float:
        """How well a document's time fits, 0 to 1; `newest` is the newest time among those compared."""
        if published_at is None:
            return 0.0
        if self.since is not None or self.until is not None:
            after = self.since is None or published_at >= self.since
            return float(after and (self.until is None or published_at < self.until))
        age = (newest or published_at) - published_at
        return float(0.5 ** (age / _HALF))


_HALF = timedelta(days=2)  # of the age at which "latest" fits half as well


def time_wish(question: str, now: datetime) -> TimeWish | None:
    """What the question asks for, seen from `now` (aware, its zone is that of the days); None where it says nothing."""
    text = " ".join(question.lower().split())
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for words, (back, days) in _SPANS.items():
        if re.search(rf"\b{words}\b", text):
            since = midnight - timedelta(days=back)
            open_end = re.search(rf"\b(?:since|after) {words}\b", text)
            return TimeWish(since, None if open_end else since + timedelta(days=days))
    if re.search(r"\b(?:this|past) week\b", text):
        return TimeWish(now - timedelta(days=7))
    if "last week" in text:
        monday = midnight - timedelta(days=midnight.weekday())
        return TimeWish(monday - timedelta(days=7), monday)
    if (last := _LAST.search(text)) is not None:
        return TimeWish(now - int(last[1] or 1) * _UNITS[last[2]])
    return _on_date(text, now) or _on_day(text, midnight) or (TimeWish(latest=True) if _LATEST.search(text) else None)


def _on_date(text: str, now: datetime) -> TimeWish | None:
    """A date: of this year, or of the last where this year's has not come yet."""
    found = _ON_DATE.search(text)
    if found is None:
        return None
    day, month = int(found["day"] or found["day2"]), _MONTHS.index(found["month"] or found["month2"]) + 1
    try:
        start = datetime(int(found["year"] or now.year), month, day, tzinfo=now.tzinfo or UTC)
        if found["year"] is None and start > now:
            start = start.replace(year=now.year - 1)
    except ValueError:  # 31 February
        return None
    return _span(start, bool(found["since"]))


def _on_day(text: str, midnight: datetime) -> TimeWish | None:
    """A day of the week: the last one that has begun."""
    found = _ON_DAY.search(text)
    if found is None:
        return None
    back = (midnight.weekday() - _DAYS.index(found["day"])) % 7
    return _span(midnight - timedelta(days=back), bool(found["since"]))


def _span(start: datetime, since: bool) -> TimeWish:
    return TimeWish(start, None if since else start + timedelta(days=1))
