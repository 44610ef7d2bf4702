"""Times of feeds: read where they are understood as a whole, else left out."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feed.parse import parse_feed
from services.feed.times import read_time
from services.stream.record import Document

DAY = "Wed, 25 Nov 2026 08:57:00"


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        *((f"{DAY} {zone}", 8.95) for zone in ("GMT", "UT", "UTC", "Z", "+0000", "-0000", "+00:00", "WET", "")),
        *(
            (f"{DAY} {zone}", 7.95)
            for zone in ("CET", "MEZ", "cet", "BST", "+0100", "+01:00", "+1", "GMT+1", "GMT+0100")
        ),
        *((f"{DAY} {zone}", 6.95) for zone in ("MEST", "CEST", "EET", "SAST", "+0200 (CEST)", "UTC+02:00")),
        *((f"{DAY} {zone}", 13.95) for zone in ("EST", "CDT", "-0500", "UTC-5", "GMT-05:00")),
        *((f"{DAY} {zone}", 16.95) for zone in ("PST", "-08:00")),
        *((f"{DAY} {zone}", -0.05) for zone in ("JST", "KST", "GMT+09:00", "Asia/Tokyo", "[Asia/Tokyo]")),
        (f"{DAY} IST".replace("IST", "+0530"), 3.45),
        ("Wed, 25 Nov 2026 8:57:00 PM +0000", 20.95),
        ("Wed, 25 Nov 2026 8:57 p.m. GMT", 20.95),
        ("Wed, 25 Nov 2026 12:57 AM", 0.95),
        ("25 Nov 26 12:57 P.M. EST", 17.95),
        ("November 25, 2026 8:57 pm PST", 28.95),
        ("11/25/2026 8:57:00 AM", 8.95),
        ("2026/11/25 08:57", 8.95),
        ("25.11.2026 08:57", 8.95),
        ("Wed Nov 25 08:57:00 2026", 8.95),
        ("2026-11-25", 0),
        ("20261125", 0),
        ("2026-11-25T08:57", 8.95),
        ("2026-11-25t08:57:00z", 8.95),
        ("2026-11-25T08:57:00+0100", 7.95),
        ("2026-11-25 08:57:00 EST", 13.95),
        ("2026-11-25T08:57:00+01:00[Europe/Paris]", 7.95),
        ("20261125T085700Z", 8.95),
    ],
)
def test_time_is_read(text: str, hours: float) -> None:
    read = read_time(text)
    assert read is not None
    assert (read - datetime(2026, 11, 25, tzinfo=UTC)).total_seconds() == pytest.approx(hours * 3600, abs=0.01)


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"{DAY} {zone}"
            for zone in ("XYZ", "IST", "AST", "A", "M", "GMT GMT", "EST-0500", "PST8PDT", "Nowhere/Land", "+99:00")
        ),
        *(
            "2026",
            "2026-11",
            "Nov 2026",
            "Wednesday",
            "08:57",
            "10",
            "1764060000",
            "1764060000000",
            "now",
            "3 days ago",
            "",
        ),
        *("05/06/2026 08:57", "5.6.2026", "Thu, 31 Feb 2026 10:00:00 GMT", "Wed, 25 Nov 2026 25:00:00 GMT", "13:57 PM"),
        *(
            "Mi, 25 Dez 2024 08:57:00 +0100",
            "mer. 25 nov. 2026 08:57",
            "0001-01-01T00:00:00+14:00",
            "2026-13-01",
            "x" * 999,
        ),
    ],
)
def test_time_that_is_not_understood_as_a_whole_is_none(text: str) -> None:
    assert read_time(text) is None


@given(st.text(alphabet=st.sampled_from("0123456789:-+/., TZAPMapm()[]JanuaryWed"), max_size=40) | st.text(max_size=90))
def test_no_text_breaks_the_reader_of_times(text: str) -> None:
    read = read_time(text)
    assert read is None or read.tzinfo is UTC


def test_every_format_reads_its_times_so() -> None:
    rss = "<rss version='2.0'><channel><item><guid>1</guid><title>a</title><pubDate>{}</pubDate></item></channel></rss>"
    atom = "<feed xmlns='http://www.w3.org/2005/Atom'><entry><id>urn:1</id><title>a</title><updated>{}</updated></entry></feed>"
    rdf = (
        "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns='http://purl.org/rss/1.0/' "
        "xmlns:dc='http://purl.org/dc/elements/1.1/'><item><title>a</title><dc:date>{}</dc:date></item></rdf:RDF>"
    )
    json = '{{"version": "https://jsonfeed.org/version/1.1", "items": [{{"id": "1", "title": "a", "date_published": "{}"}}]}}'
    for feed in (rss, atom, rdf, json):
        times = []
        for time in ("Wed, 25 Nov 2026 08:57:00 CET", "2026-11-25T08:57:00+01:00", "Wed, 25 Nov 2026 08:57:00 IST"):
            (document,) = parse_feed(feed.format(time).encode(), "feed")
            assert isinstance(document, Document)
            times.append(document.published_at)
        assert times == [*[datetime(2026, 11, 25, 7, 57, tzinfo=UTC)] * 2, None], feed


def test_published_counts_before_updated_and_updated_for_a_time_that_is_not_understood() -> None:
    atom = (
        "<feed xmlns='http://www.w3.org/2005/Atom'><entry><id>urn:1</id><title>a</title>"
        "<published>{}</published><updated>2026-11-26T00:00:00Z</updated></entry></feed>"
    )
    for published, day in (("2026-11-25T00:00:00Z", 25), ("last Friday", 26)):
        (document,) = parse_feed(atom.format(published).encode(), "feed")
        assert isinstance(document, Document)
        assert document.published_at == datetime(2026, 11, day, tzinfo=UTC)
