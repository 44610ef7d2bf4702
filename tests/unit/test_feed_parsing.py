"""Feeds in their true formats, sound and broken, become documents with clean text."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import FeedError
from services.feed.fetch import read_all, read_any
from services.feed.html_text import html_to_text
from services.feed.items import Item
from services.feed.jsonl import parse_jsonl
from services.feed.parse import parse_feed
from services.settings import FeedSettings
from services.stream.decode import decode
from services.stream.record import Document, RawRecord, Tombstone

RSS = b"""<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:content="http://purl.org/rss/1.0/modules/content/" xmlns:dc="http://purl.org/dc/elements/1.1/">
<channel><title>Harbour &amp; Hill Gazette</title><link>https://gazette.example/</link><language>en-gb</language>
<item><guid isPermaLink="false">gaz-1</guid><title>Ferry &lt;em&gt;returns&lt;/em&gt;</title>
 <link>https://gazette.example/ferry</link><pubDate>Wed, 01 May 2024 12:00:00 +0200</pubDate>
 <dc:creator>Ada Quill</dc:creator><category>Transport</category><category>Harbour</category>
 <description>Short summary.</description>
 <content:encoded><![CDATA[<h2>Back in service</h2><p>The ferry&nbsp;returns
 on Monday &mdash; fares are <b>&pound;3</b>.</p><script>track("x");</script><style>p{}</style>
 <p>Tickets<br>at the pier.</p>]]></content:encoded>
</item>
<item><title>No guid here</title><link>https://gazette.example/no-guid</link>
 <description>Only a &lt;p&gt;summary&lt;/p&gt;.</description></item>
<item><title>Neither guid nor link</title><description>Text alone.</description></item>
<item><title>Headline only</title><guid>gaz-4</guid></item>
<item><guid>gaz-5</guid><link>https://gazette.example/empty</link><description>  </description></item>
</channel></rss>"""

ATOM = b"""<?xml version="1.0" encoding="utf-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xml:lang="de"><title>Talblatt</title>
<entry><id>urn:uuid:60a76c80</id><title type="html">M&amp;uuml;hle wieder offen</title>
<link href="https://talblatt.example/muehle"/><updated>2024-05-02T08:30:00Z</updated>
<published>2024-05-01T23:30:00-02:00</published><summary>Kurz.</summary>
<content type="xhtml"><div xmlns="http://www.w3.org/1999/xhtml"><p>Die M\xc3\xbchle mahlt.</p>
<p>Ab Juni t\xc3\xa4glich.</p></div></content>
</entry></feed>"""

RDF = b"""<?xml version="1.0"?>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/">
<channel rdf:about="https://rdf.example/"><title>Old Wire</title><link>https://rdf.example/</link></channel>
<item rdf:about="https://rdf.example/1"><title>Bridge closed</title><link>https://rdf.example/1</link>
<description>The bridge is closed.</description><dc:date>2003-01-02T03:04:05Z</dc:date></item></rdf:RDF>"""

RSS_091 = b"""<?xml version="1.0" encoding="ISO-8859-1"?><rss version="0.91"><channel><title>Caf\xe9</title>
<item><title>Men\xfa</title><link>https://cafe.example/menu</link><description>Cr\xe8me.</description></item></channel></rss>"""

JSON_FEED = json.dumps(
    {
        "version": "https://jsonfeed.org/version/1.1",
        "title": "Orchard Notes",
        "language": "en",
        "items": [
            {
                "id": 17,
                "url": "https://orchard.example/17",
                "title": "Apples",
                "content_html": "<p>Apples &amp; pears</p><p>are ripe.</p>",
                "summary": "Fruit.",
                "date_published": "2024-09-01T10:00:00+01:00",
                "authors": [{"name": "Bo"}, {"name": "Cy"}],
                "tags": ["fruit", "autumn"],
            },
            {"id": "18", "content_text": "a < b & c", "date_modified": "never"},
            {"id": "19"},
            "no item",
        ],
    }
).encode()


def documents(data: bytes) -> list[Document]:
    return [item for item in parse_feed(data, "feed") if isinstance(item, Document)]


def test_rss_item_takes_full_content_before_the_summary() -> None:
    document = documents(RSS)[0]
    assert document == Document(
        "gaz-1",
        "Back in service\nThe ferry returns on Monday \u2014 fares are \u00a33.\nTickets\nat the pier.",
        title="Ferry returns",
        url="https://gazette.example/ferry",
        source="Harbour & Hill Gazette",
        published_at=datetime(2024, 5, 1, 10, tzinfo=UTC),
        lang="en-gb",
        metadata={"author": "Ada Quill", "tags": "Transport, Harbour"},
    )


def test_item_is_known_by_guid_then_link_then_hash() -> None:
    first, second, third, fourth = documents(RSS)
    assert (first.id, second.id, fourth.id) == ("gaz-1", "https://gazette.example/no-guid", "gaz-4")
    assert len(third.id) == 32
    assert third.id == documents(RSS)[2].id
    assert third.id != documents(RSS.replace(b"Neither guid nor link", b"Another title"))[2].id


def test_headline_is_the_text_when_there_is_no_other_and_empty_items_are_counted() -> None:
    items = parse_feed(RSS, "feed")
    assert [item.id for item in items][-1] == "gaz-4"
    assert items.skipped == 1
    assert documents(RSS)[3].text == "Headline only"


def test_atom_entry_is_read_with_its_own_published_time() -> None:
    (document,) = documents(ATOM)
    assert document.published_at == datetime(2024, 5, 2, 1, 30, tzinfo=UTC)
    assert (document.id, document.title, document.lang) == ("urn:uuid:60a76c80", "M\u00fchle wieder offen", "de")
    assert document.text == "Die M\u00fchle mahlt.\nAb Juni t\u00e4glich."
    assert (document.source, document.url) == ("Talblatt", "https://talblatt.example/muehle")


def test_rdf_and_old_rss_are_read() -> None:
    (wire,) = documents(RDF)
    assert (wire.id, wire.text, wire.source) == ("https://rdf.example/1", "The bridge is closed.", "Old Wire")
    assert wire.published_at == datetime(2003, 1, 2, 3, 4, 5, tzinfo=UTC)
    (cafe,) = documents(RSS_091)
    assert (cafe.title, cafe.text, cafe.source) == ("Men\u00fa", "Cr\u00e8me.", "Caf\u00e9")


def test_json_feed_is_read() -> None:
    items = parse_feed(b"\xef\xbb\xbf\n" + JSON_FEED, "feed")
    first, second = items
    assert first == Document(
        "17",
        "Apples & pears\nare ripe.",
        title="Apples",
        url="https://orchard.example/17",
        source="Orchard Notes",
        published_at=datetime(2024, 9, 1, 9, tzinfo=UTC),
        lang="en",
        metadata={"author": "Bo, Cy", "tags": "fruit, autumn"},
    )
    assert isinstance(second, Document)
    assert (second.text, second.published_at) == ("a < b & c", None)
    assert items.skipped == 2


def test_broken_xml_is_read_as_far_as_it_goes() -> None:
    found = documents(RSS.replace(b"</channel></rss>", b"<item><title>Cut &unknown; off"))
    assert [document.id for document in found[:2]] == ["gaz-1", "https://gazette.example/no-guid"]


def test_feed_without_items_is_no_error() -> None:
    assert documents(b'<rss version="2.0"><channel><title>Quiet</title></channel></rss>') == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain words",
        b"<html><head><title>Moved</title></head><body><p>Sign in</p></body></html>",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)),
        b'<rss version="2.0"><channel><ti',
        b'{"items": [',
        b'{"version": "https://jsonfeed.org/version/2", "items": []}',
        b'{"version": "https://jsonfeed.org/version/1"}',
        b"[1, 2]",
        b"[" * 100_000,
        b'{"version": \xff}',
    ],
)
def test_bytes_that_are_no_feed_are_one_line_with_the_name(data: bytes) -> None:
    with pytest.raises(FeedError, match=r"^somewhere\.xml: [^\n]+$"):
        parse_feed(data, "somewhere.xml")


def test_bytes_that_name_a_file_do_not_read_that_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.xml"
    secret.write_bytes(RSS)
    with pytest.raises(FeedError):
        parse_feed(str(secret).encode(), "feed")


def test_link_that_is_not_http_is_left_out() -> None:
    data = RSS.replace(b"https://gazette.example/ferry", b"javascript:alert(1)")
    assert documents(data)[0].url == ""


def test_identity_that_is_too_long_becomes_a_hash() -> None:
    data = RSS.replace(b"gaz-1", b"g" * 2000)
    assert len(documents(data)[0].id) == 32


@pytest.mark.parametrize("data", [RSS, ATOM, RDF, RSS_091, JSON_FEED])
def test_every_feed_document_is_a_valid_record(data: bytes) -> None:
    for document in documents(data):
        assert decode(RawRecord("t", 0, 0, 0, document.id.encode(), document.to_json())) == document


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one</p><p>two</p>", "one\ntwo"),
        ("a<br/>b<hr>c", "a\nb\nc"),
        ("<ul><li>x<li>y</ul>", "x\ny"),
        ("<b>bo</b>ld  and\n <i>thin</i>", "bold and thin"),
        ("5 &lt; 6 &amp;&nbsp;7 &#8364; &#x41; &bogus;", "5 < 6 & 7 \u20ac A &bogus;"),
        ("before<script>if (a < b) {}</script>after<style>p{}</style>", "beforeafter"),
        ("x<template><template>a</template>b</template>y", "xy"),
        ("<!-- note -->text<!DOCTYPE x>", "text"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1 2\n3"),
        ("<![if !IE]>seen", "seen"),
        ("\ud800a\x00b\u200b", "ab"),
        ("  \n ", ""),
    ],
)
def test_html_becomes_clean_text(html: str, text: str) -> None:
    assert html_to_text(html) == text


@given(
    st.lists(
        st.sampled_from(["<", ">", "![", "<!", "--", "script", "/", "p", "&", "#", ";", "]]>", " ", "é", "\ud800"])
    )
)
def test_no_markup_breaks_the_cleaner(parts: list[str]) -> None:
    html_to_text("".join(parts)).encode()


@given(
    st.binary(max_size=300)
    | st.tuples(st.integers(0, len(RSS)), st.binary(max_size=9)).map(lambda c: RSS[: c[0]] + c[1])
)
def test_no_bytes_raise_anything_but_a_feed_error(data: bytes) -> None:
    try:
        found = documents(data)
    except FeedError:
        found = []
    assert all(document.id and document.text for document in found)


JSONL = b"""{"id": "1", "text": "One.", "namespace": "city", "published_at": "2024-05-01T00:00:00Z"}

{"id": "2", "text": ""}
{"id": "1", "deleted": true, "namespace": "city"}
{"id": "", "deleted": true}
{"id": "3", "text": "Three.", "deleted": false}
not json
{"id": "4", "text": "Four."}"""
JSONL_ITEMS = [
    Document("1", "One.", namespace="city", published_at=datetime(2024, 5, 1, tzinfo=UTC)),
    Tombstone("1", "city"),
    Document("3", "Three."),
    Document("4", "Four."),
]


def drain(items: object) -> tuple[list[Item], list[str]]:
    """Items and errors of an iterator that goes on after an error."""
    found: list[Item] = []
    errors: list[str] = []
    while True:
        try:
            found.append(next(items))  # type: ignore[call-overload]
        except StopIteration:
            return found, errors
        except FeedError as error:
            errors.append(str(error))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_jsonl_is_read_and_bad_lines_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"docs{suffix}"
    path.write_bytes(gzip.compress(JSONL) if suffix.endswith("gz") else JSONL)
    items, errors = drain(parse_jsonl(path))
    assert items == JSONL_ITEMS
    assert [error.split(": ")[0] for error in errors] == [f"{path}:{line}" for line in (3, 5, 7)]


def test_jsonl_with_byte_order_marks_is_read_from_its_first_line_on(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    mark = b"\xef\xbb\xbf"
    path.write_bytes(
        mark + JSONL.replace(b"\n\n", b"\n" + mark + b"\n") + b"\n" + mark + b'{"id": "5", "text": "Five."}'
    )
    items, errors = drain(parse_jsonl(path))
    assert items == [*JSONL_ITEMS, Document("5", "Five.")]
    assert len(errors) == 3


def test_jsonl_field_that_cannot_be_understood_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'\n{"id": "1", "text": "One.", "published_at": "soon", "score": NaN}\n')
    assert drain(parse_jsonl(path)) == ([Document("1", "One.")], [])
    assert caplog.messages == [f"{path}:2: published_at can't be understood and is left out"]


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    """Neither of records, nor of a feed, packed or not."""
    mark = b"\xef\xbb\xbf"
    for name, data in (
        ("a.jsonl", JSONL),
        ("b.jsonl.gz", JSONL),
        ("c.json", JSON_FEED),
        ("d.xml.gz", RSS),
        ("e.atom", ATOM),
    ):
        (tmp_path / name).write_bytes(gzip.compress(mark + data) if name.endswith("gz") else mark + data)
    items, errors = drain(read_any(str(tmp_path), FeedSettings()))
    assert len(items) == 2 * len(JSONL_ITEMS) + 2 + 4 + 1
    assert len(errors) == 6


def test_jsonl_line_above_the_limit_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"id": "1", "text": "' + b"x" * 1000 + b'"}\n{"id": "2", "text": "Two."}\n')
    items, errors = drain(parse_jsonl(path, max_line_bytes=100))
    assert items == [Document("2", "Two.")]
    assert errors == [f"{path}:1: the line has more than 100 bytes"]


def test_cut_off_gz_gives_what_it_holds_and_one_error(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl.gz"
    lines = b"".join(Document(str(n), f"Text {n * 7919}.").to_json() + b"\n" for n in range(3000))
    path.write_bytes(gzip.compress(lines)[:-2000])
    items, errors = drain(parse_jsonl(path))
    assert len(items) > 100
    assert len(errors) == 1


def test_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    for name in ("none.xml", "none.jsonl", "none.jsonl.gz"):
        items, errors = drain(read_any(str(tmp_path / name), FeedSettings()))
        assert items == []
        assert errors == [errors[0]]
        assert errors[0].startswith(f"{tmp_path / name}: can't be read")


def test_folder_is_read_by_name_and_a_broken_file_does_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(JSONL)
    (tmp_path / "b.xml").write_bytes(b"no feed")
    (tmp_path / "a.atom").write_bytes(ATOM)
    (tmp_path / "notes.txt").write_bytes(b"no feed either")
    (tmp_path / ".hidden.xml").write_bytes(RSS)
    (tmp_path / "d.rss").write_bytes(RSS)
    (tmp_path / "e.xml").mkdir()
    queue = read_any(str(tmp_path), FeedSettings())
    items, errors = drain(queue)
    assert [item.id for item in items][:6] == ["urn:uuid:60a76c80", "1", "1", "3", "4", "gaz-1"]
    assert len(items) == 9
    assert [Path(error.split(":")[0]).name for error in errors] == ["b.xml", "c.jsonl", "c.jsonl", "c.jsonl"]
    assert queue.skipped == 1


def test_folder_without_feeds_and_file_above_the_limit_are_errors(tmp_path: Path) -> None:
    settings = FeedSettings(max_bytes=100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "big.xml").write_bytes(RSS)
    items, errors = drain(read_all([str(tmp_path / "empty"), str(tmp_path / "big.xml")], settings))
    assert items == []
    assert "holds no feed files" in errors[0]
    assert errors[1] == f"{tmp_path / 'big.xml'}: more than 100 bytes"
