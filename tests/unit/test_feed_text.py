"""The texts of feeds: bytes become characters, declared types are believed, and nothing that was written is taken for a tag."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import FeedError
from services.feed.charset import decoded
from services.feed.html_text import html_to_text
from services.feed.items import Item
from services.feed.markup import declared_text, undeclared_text
from services.feed.packed import unpacked
from services.feed.parse import parse_feed
from services.stream.record import Document


def only(items: object) -> Document:
    (item,) = items  # type: ignore[misc]
    assert isinstance(item, Document)
    return item


def rss(title: str, head: str = "") -> str:
    return f"{head}<rss version='2.0'><channel><item><guid>1</guid><title>{title}</title></item></channel></rss>"


RUSSIAN, JAPANESE, FRENCH = "Мост открыт", "新しい橋①", "Marché rouvert à Brévelle"


@pytest.mark.parametrize(
    ("text", "codec", "content_type"),
    [
        (RUSSIAN, "cp1251", "text/xml; charset=windows-1251"),
        (RUSSIAN, "koi8-r", 'application/rss+xml; CHARSET="KOI8-R"'),
        (JAPANESE, "cp932", "text/xml; charset=Shift_JIS"),
        (JAPANESE, "cp932", "application/xml;charset=x-sjis"),
        ("新しい橋", "iso2022_jp", "text/xml; charset=iso-2022-jp"),
        ("联通新闻", "gb18030", "text/xml; charset=gb2312"),
        (FRENCH, "cp1252", "text/xml; charset=iso-8859-1"),
        (RUSSIAN, "utf-8", "text/xml; charset=iso-8859-1"),
        (RUSSIAN, "utf-8", "text/xml"),
        (RUSSIAN, "utf-8", "text/html; charset=nonsense"),
        (RUSSIAN, "utf-8", "text/xml; charset=zlib_codec"),
        (RUSSIAN, "utf-16", "text/xml"),
        (RUSSIAN, "utf-16-le", "application/xml; charset=utf-8"),
        (RUSSIAN, "utf-32", ""),
        (RUSSIAN, "utf-8-sig", "text/xml; charset=windows-1251"),
    ],
)
def test_charset_of_the_server_is_believed_where_it_can_be(text: str, codec: str, content_type: str) -> None:
    feed = json.dumps({"version": "https://jsonfeed.org/version/1", "items": [{"title": text}]}, ensure_ascii=False)
    for source in (rss(text), feed):
        assert only(parse_feed(source.encode(codec), "feed", content_type=content_type)).title == text


@pytest.mark.parametrize(
    ("text", "codec", "head"),
    [
        (RUSSIAN, "cp1251", "<?xml version='1.0' encoding='windows-1251'?>"),
        (RUSSIAN, "utf-8", "<?xml version='1.0' encoding='utf-16'?>"),
        (RUSSIAN, "utf-8", "<?xml version='1.0' encoding='iso-8859-1'?>"),
        (FRENCH, "latin-1", "<?xml version='1.0' encoding='utf-8'?>"),
        (FRENCH, "latin-1", ""),
        (RUSSIAN + " через реку Сухона длиной 420 метров", "cp1251", ""),
        (JAPANESE, "euc_jis_2004", "\n<?xml version='1.0' encoding='euc-jis-2004'?>"),
    ],
)
def test_declaration_of_the_file_is_believed_where_it_can_be(text: str, codec: str, head: str) -> None:
    assert only(parse_feed(rss(text, head).encode(codec), "feed")).title == text


def test_the_server_goes_before_the_file() -> None:
    head = "<?xml version='1.0' encoding='windows-1252'?>"
    data = rss(RUSSIAN, head).encode("cp1251")
    assert only(parse_feed(data, "feed", content_type="text/xml; charset=windows-1251")).title == RUSSIAN


def test_one_broken_character_does_not_spoil_the_others() -> None:
    data = rss(f"{FRENCH} été").encode().replace("été".encode(), "été".encode()[:-1])
    assert only(parse_feed(data, "feed")).title == f"{FRENCH} ét\ufffd"


@given(st.binary(max_size=60), st.text(max_size=40))
def test_no_bytes_and_no_content_type_break_decoding(data: bytes, content_type: str) -> None:
    decoded(data, content_type).encode()


PLAIN = "Calling add(List<Widget> parts) fails when a < b and b > c & d."
DRAWN = "<p>The &lt;svg&gt; element is drawn <b>twice</b> as fast.</p>"


@pytest.mark.parametrize(
    ("value", "media_type", "text"),
    [
        (PLAIN, "text/plain", PLAIN),
        ("Builder refuses <col> inside <colgroup>", "text/plain", "Builder refuses <col> inside <colgroup>"),
        ("Use <b>bold</b> &amp; <br>", "text", "Use <b>bold</b> &amp; <br>"),
        ("# Markdown <T>", "text/markdown; charset=utf-8", "# Markdown <T>"),
        (DRAWN, "text/html", "The <svg> element is drawn twice as fast."),
        (DRAWN, "TEXT/HTML; charset=utf-8", "The <svg> element is drawn twice as fast."),
        ("<div>The <em>mill</em></div>", "application/xhtml+xml", "The mill"),
        ("&lt;p&gt;shown as it is&lt;/p&gt;", "text/html", "<p>shown as it is</p>"),
        ("JVBERi0xLjQKJeLjz9MK", "application/pdf", ""),
        ("iVBORw0KGgoAAAANSUhEUgAA\nAAEAAAABCAYAAAAfFcSJ", "image/png", ""),
        ("<x><y/></x>", "application/xml", ""),
    ],
)
def test_declared_type_is_believed(value: str, media_type: str, text: str) -> None:
    assert declared_text(value, media_type) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (PLAIN, PLAIN),
        ("Result<T> replaces Option<T>", "Result<T> replaces Option<T>"),
        ("Map<String, Integer> is gone", "Map<String, Integer> is gone"),
        ("Builder refuses <col> inside <colgroup>", "Builder refuses <col> inside <colgroup>"),
        ("Ferry <em>returns</em>", "Ferry returns"),
        ("one<br>two<BR/>three", "one\ntwo\nthree"),
        ("<p>Fixed <a href='/12'>12</a>: add(List<Widget> x) <o:p></o:p>", "Fixed 12: add(List<Widget> x)"),
        ("<img src=x.png>The mill", "The mill"),
        ("Bell &amp; Hart &#8211; up 7% &bogus; AT&T a?x=1&copy=2", "Bell & Hart – up 7% &bogus; AT&T a?x=1&copy=2"),
        ("&lt;p&gt;Twice: Bell &amp; Hart earned &pound;7 million.&lt;/p&gt;", "Twice: Bell & Hart earned £7 million."),
        ("Escape it as &lt;b&gt;, not as &lt;i&gt;.", "Escape it as <b>, not as <i>."),
        ("Text<!-- note -->", "Text"),
    ],
)
def test_undeclared_text_is_html_where_it_has_markup(value: str, text: str) -> None:
    assert undeclared_text(value, "text/html") == undeclared_text(value, "text/plain") == text


def test_atom_declares_and_rss_does_not() -> None:
    atom = "<feed xmlns='http://www.w3.org/2005/Atom'><entry><id>urn:1</id><title>a</title>{}</entry></feed>"
    escaped = "&lt;b&gt;x&lt;/b&gt;"
    for element, text in (
        (f"<content type='text'>{escaped}</content>", "<b>x</b>"),
        (f"<content>{escaped}</content>", "<b>x</b>"),
        (f"<summary type='html'>{escaped}</summary>", "x"),
        ("<content type='application/pdf'>JVBERi0xLjQKJeLjz9MK</content><summary>The weir.</summary>", "The weir."),
    ):
        assert only(parse_feed(atom.format(element).encode(), "feed")).text == text
    rss_feed = f"<rss version='2.0'><channel><item><description>{escaped}</description></item></channel></rss>"
    assert only(parse_feed(rss_feed.encode(), "feed")).text == "x"


def test_json_feed_declares_by_its_field() -> None:
    items = [{"content_text": "a <b>c</b> &amp;"}, {"content_html": "a <b>c</b> &amp;"}, {"title": "Option<T>"}]
    feed = json.dumps({"version": "https://jsonfeed.org/version/1.1", "items": items}).encode()
    texts = [item.text for item in parse_feed(feed, "feed") if isinstance(item, Document)]
    assert texts == ["a <b>c</b> &amp;", "a c &", "Option<T>"]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Set it so:</p><pre>line one\n  line two</pre>Done.", "Set it so:\nline one\nline two\nDone."),
        ("<tr><td>Gannets</td><td>41</td></tr>", "Gannets41"),
        ("<table><caption>Results</caption><tr><th>Team</th><th>Points</th></tr></table>", "Results\nTeam Points"),
        ("<figure><img alt=no><figcaption>The mill</figcaption></figure>", "The mill"),
        ("safe<iframe src='x'/> rest<script src='y'/>!", "safe rest !"),
        ("safe<iframe src='x'> rest", "safe rest"),
        ("<object data=x>rest", "rest"),
        ("a<script>never closed", "a"),
        ("<dl><dt>Team<dd>Gannets</dl>", "Team\nGannets"),
        ("Story goes on <a href='http://x", "Story goes on"),
        ("<div>" * 3000 + "deep", "deep"),
        ("H<sub>2</sub>O 1,<span>234</span>", "H2O 1,234"),
    ],
)
def test_html_keeps_its_words(html: str, text: str) -> None:
    assert html_to_text(html) == text


@pytest.mark.parametrize("part", ["<!--", "<", "<div>", "<table>", "<![CDATA[", "&", "<a href='", "<script>", "<b "])
def test_hostile_html_is_read_within_the_time_of_its_length(part: str) -> None:
    """With a parser that takes the square of it, 300 kB would be minutes."""
    html_to_text(part * (300_000 // len(part)))


FEED = rss("Packed").encode()


@pytest.mark.parametrize(
    "data",
    [
        FEED,
        gzip.compress(FEED),
        zlib.compress(FEED),
        gzip.compress(gzip.compress(FEED)),
        gzip.compress(FEED[:50]) + gzip.compress(FEED[50:]),
        gzip.compress(FEED) + b"\0" * 100,
    ],
    ids=["plain", "gzip", "zlib", "twice", "members", "padded"],
)
def test_packed_feed_is_read_whatever_it_says(data: bytes) -> None:
    assert unpacked(data, 10_000, "feed") == FEED


@pytest.mark.parametrize(
    "data",
    [gzip.compress(FEED)[:-20], gzip.compress(FEED)[:12] + b"broken", b"\x1f\x8b"],
    ids=["cut", "broken", "head"],  # gzip writes the time, and workers of pytest-xdist must name tests alike
)
def test_broken_gzip_is_one_line(data: bytes) -> None:
    with pytest.raises(FeedError, match=r"^feed: broken gzip data \([^\n]+\)$"):
        unpacked(data, 10_000, "feed")


def test_gzip_bomb_is_not_unpacked() -> None:
    for bomb in (gzip.compress(b"x" * 50_000_000), gzip.compress(b"x" * 6000) * 1000):
        with pytest.raises(FeedError, match="feed: more than 10000 bytes"):
            unpacked(bomb, 10_000, "feed")


PAGE = """<!doctype html><html><head>{}</head><body>hello</body></html>"""
LINK = "<link rel='{}' type='{}' href='{}'>"


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (LINK.format("alternate", "application/rss+xml", "/feed"), "; it names http://h.example/feed"),
        (LINK.format("Alternate home", "application/atom+xml;x", "f.atom"), "; it names http://h.example/a/f.atom"),
        (
            LINK.format("alternate", "application/rss+xml", "//f.example/1")
            + LINK.format("alternate", "application/feed+json", "2")
            + LINK.format("alternate", "text/html", "/de"),
            "; it names http://f.example/1 and http://h.example/a/2",
        ),
        (
            "<base href='http://b.example/x/'>" + LINK.format("alternate", "application/rss+xml", "r"),
            "; it names http://b.example/x/r",
        ),
        (LINK.format("stylesheet", "application/rss+xml", "/feed"), ""),
        (LINK.format("alternate", "application/rss+xml", "http://[x"), ""),
        ("", ""),
    ],
)
def test_web_page_is_told_and_names_its_feeds(head: str, names: str) -> None:
    with pytest.raises(FeedError) as caught:
        parse_feed(PAGE.format(head).encode(), "page", url="http://h.example/a/b")
    assert str(caught.value) == f"page: a web page, not a feed{names}"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\x03\x04rest", "a zip archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x89PNG\r\n", "an image"),
        (b"BZh9x", "bzip2 data"),
    ],
)
def test_other_files_are_named(data: bytes, what: str) -> None:
    with pytest.raises(FeedError, match=f"^file: {what}, not a feed$"):
        parse_feed(data, "file")


LINKS = {
    "rss": "<rss version='2.0'><channel><item><title>a</title><link>{}</link></item></channel></rss>",
    "rss with base": "<rss version='2.0' xml:base='http://b.example/c/'><channel><item><title>a</title><link>{}</link></item>"
    "</channel></rss>",
    "atom": "<feed xmlns='http://www.w3.org/2005/Atom'><entry><title>a</title><link href='{}'/></entry></feed>",
    "rdf": "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns='http://purl.org/rss/1.0/'>"
    "<item><title>a</title><link>{}</link></item></rdf:RDF>",
    "json": '{{"version": "https://jsonfeed.org/version/1", "items": [{{"title": "a", "url": "{}"}}]}}',
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize(
    ("link", "address"),
    [
        ("/n/1", "http://h.example/n/1"),
        ("n/1", "http://h.example/a/n/1"),
        ("?n=1", "http://h.example/a/feed?n=1"),
        ("//o.example/1", "http://o.example/1"),
        ("https://o.example/1", "https://o.example/1"),
        ("javascript:alert(1)", ""),
        ("mailto:a@b.example", ""),
    ],
)
def test_relative_link_is_joined_to_the_feeds_address(kind: str, link: str, address: str) -> None:
    found = only(parse_feed(LINKS[kind].format(link).encode(), "feed", url="http://h.example/a/feed"))
    if "base" in kind:
        address = address.replace("//h.example/a/feed?", "//b.example/c/?").replace("//h.example/a/", "//b.example/c/")
        address = address.replace("//h.example", "//b.example")
    assert found.url == address


def test_a_guid_is_a_link_only_when_it_is_an_address() -> None:
    for guid, address in (("g-1", ""), ("/1", ""), ("http://h.example/1", "http://h.example/1")):
        feed = f"<rss version='2.0'><channel><item><guid>{guid}</guid><title>a</title></item></channel></rss>"
        found = only(parse_feed(feed.encode(), "feed", url="http://h.example/a/feed"))
        assert (found.id, found.url) == (guid, address)


def test_feed_without_an_address_is_joined_to_the_one_that_it_names() -> None:
    atom = (
        "<feed xmlns='http://www.w3.org/2005/Atom'><link rel='self' href='http://s.example/f'/><entry><title>a</title>"
    )
    assert only(parse_feed(f"{atom}<link href='/1'/></entry></feed>".encode(), "file")).url == "http://s.example/1"
    feed = {
        "version": "https://jsonfeed.org/version/1",
        "feed_url": "http://s.example/f",
        "items": [{"id": 1, "url": "/1", "title": "a"}],
    }
    assert only(parse_feed(json.dumps(feed).encode(), "file")).url == "http://s.example/1"
    items: list[Item] = list(parse_feed(LINKS["rss"].format("/1").encode(), "file"))
    assert [item.url for item in items if isinstance(item, Document)] == [""]
