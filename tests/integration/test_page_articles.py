"""Articles on the page, in a real browser: opened with the passage that was read and every version, and hostile ones harmless."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.bank.reader import BankReader
from services.testing.memory_bank import window
from tests.integration.browser import Browser, needs_chromium
from tests.integration.page_desk import Page, live
from tests.integration.serve_desk import Desk
from tests.waiting import until

pytestmark = needs_chromium

BRIDGE = "Who opened the bridge in Aarhus?"
ACTING = "\u202e\u2066\x1b]0;x\x07\u2028"  # an override, an isolate, a terminal's title, a line separator


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Page, Desk]]:
    """The page on the real bank, with a desk that writes into it."""
    desk = Desk(str(tmp_path / "bank"))
    page = Page(bank=BankReader(desk.uri, read_staleness_s=0.0))
    yield page, desk
    page.stop()
    desk.close()


def opened(browser: Browser, page: Page) -> None:
    browser.open(page.url)
    live(browser)


def read(browser: Browser, selector: str) -> str:
    """The text of the reader once the article has come."""
    browser.page.click(selector)
    until(lambda: browser.text("#reader-text") not in ("", "Opening…"))
    return browser.text("#reader-text")


def test_source_opens_its_article_at_the_passage_that_was_read(browser: Browser, served: Page, pictures: Path) -> None:
    came: Any = {"ingested_at": datetime.now(UTC)}
    first = "Aarhus has waited long. The harbour was dredged last year. Mayor Lund spoke."
    second = "Mayor Lund spoke. The new bridge was opened by Queen Mary on Friday. It cost 12 million."
    third = "It cost 12 million. Cyclists may use it for nothing."
    for number, text in enumerate((first, second, third)):
        served.engine.publish("long", "The bridge", text, chunk_no=number, **came)
    opened(browser, served)
    browser.ask("By whom was the new bridge opened on Friday?")
    text = read(browser, ".sources .title")
    assert (
        text.count("Mayor Lund spoke.") == text.count("It cost 12 million.") == 1
    )  # windows overlap, the text does not
    assert (
        browser.text("#reader-text .passage")
        == "The new bridge was opened by Queen Mary on Friday. It cost 12 million."
    )
    assert browser.text("#reader-text mark") == "The new bridge was opened by Queen Mary on Friday."
    assert "The memory answers from this version." in browser.text("#reader-state")
    assert "published" in browser.text("#reader-about")
    browser.screenshot(pictures / "reader.png")
    browser.press("Escape")


def test_every_version_is_there_and_the_one_that_was_read_is_named(browser: Browser, kept: tuple[Page, Desk]) -> None:
    page, desk = kept
    desk.publish("bridge", "Bridge opens", "Mayor Lund opened the bridge in Aarhus on Monday.")
    opened(browser, page)
    browser.ask(BRIDGE)
    desk.publish("bridge", "Bridge opens, again", "Mayor Berg opened the bridge in Aarhus on Tuesday.")
    assert "Lund" in read(browser, ".sources .title")  # what was read, not what stands there now
    assert "A newer version took its place" in browser.text("#reader-state")
    assert "The answer was read from it." in browser.text("#reader-state")
    assert browser.js("document.querySelectorAll('#reader-versions button').length") == 2
    browser.page.click("#reader-versions button:first-child")
    until(lambda: "Berg" in browser.text("#reader-text"))
    assert browser.text("#reader-title") == "Bridge opens, again"
    assert "read from another version" in browser.text("#reader-state")
    assert browser.js("document.querySelector('#reader-text mark')") is None
    browser.press("Escape")
    desk.delete("bridge")
    read(browser, ".sources .title")
    browser.page.click("#reader-versions button:first-child")
    until(lambda: "It was withdrawn" in browser.text("#reader-state"))
    browser.press("Escape")


def test_latest_article_opens_without_a_mark(browser: Browser, filled: Page) -> None:
    opened(browser, filled)
    assert "photographed over Skagen" in read(browser, "#articles li:nth-child(3) .title")
    assert browser.js("document.querySelector('#reader-text mark, #reader-text .passage')") is None
    browser.press("Escape")
    assert browser.js("document.getElementById('reader').open") is False


@pytest.mark.parametrize("doc_id", ["a/b?c#d", "100%25", "/x//", "https://news.example/a?b=c&d", "ä ö\u202e", "%2e%2e"])
def test_article_opens_whatever_its_id_is(browser: Browser, served: Page, doc_id: str) -> None:
    served.engine.publish(doc_id, "Odd id", "The harbour was closed by fog.")
    opened(browser, served)
    assert "closed by fog" in read(browser, "#articles .title")
    browser.press("Escape")


def test_article_that_is_gone_says_so(browser: Browser, filled: Page) -> None:
    opened(browser, filled)
    browser.ask(BRIDGE)
    filled.engine.bank._rows.clear()
    assert "does not have this article any more" in read(browser, ".sources .title")
    browser.press("Escape")


def test_addresses_of_examples_are_no_links(browser: Browser, served: Page) -> None:
    addresses = {
        "reserved": "https://news.example/harbour",
        "documentation": "http://www.example.com/a",
        "script": "javascript:alert(1)",
        "broken": "http://[nonsense",
        "real": "https://www.dr.dk/nyheder/bro",
    }
    for doc_id, url in addresses.items():
        served.engine.publish(doc_id, f"Title {doc_id}", "The harbour was closed by fog.", url=url)
    opened(browser, served)
    for doc_id, url in addresses.items():
        read(browser, f"#articles li[data-id={doc_id}] .title")
        links = browser.js("[...document.querySelectorAll('#reader a')].map((link) => [link.href, link.rel])")
        assert links == ([[url, "noopener noreferrer"]] if doc_id == "real" else [])
        if doc_id != "real":
            assert url in browser.text("#reader-foot")
        browser.press("Escape")


def test_sources_without_weight_are_folded_away(browser: Browser, filled: Page) -> None:
    model = filled.engine.model
    text = "Mayor Lund opened the bridge in Aarhus."  # what it is found by; its memory tells of something else
    other = window("other", text, model.pack("Bread got dearer."), title="Of the bridge, too")
    filled.engine.bank.add(model.query_keys([text]).vectors[0], other)
    opened(browser, filled)
    browser.ask(BRIDGE)
    assert browser.text(".answer > .rest > .sources .title") == "Aarhus opens its new harbour bridge"
    assert browser.text(".considered summary") == "Also considered (1)"
    assert not browser.js("document.querySelector('.considered').open")
    browser.page.click(".considered summary")
    assert browser.text(".considered .title") == "Of the bridge, too"
    assert browser.js("[...document.querySelectorAll('.bar.weight')].map((bar) => bar.lastChild.textContent)") == [
        "100%"
    ]


def test_markup_and_script_links_from_feeds_stay_text(browser: Browser, filled: Page) -> None:
    browser.problems.clear()
    opened(browser, filled)
    browser.ask("What is markup in a feed? <b>bold</b>")
    assert browser.js("document.querySelectorAll('#articles img, #answers img, #answers b').length") == 0
    assert browser.js("[...document.links].every((link) => /^https?:$/.test(link.protocol))")
    assert "onerror" in browser.text("#articles")
    assert "onerror" in read(browser, ".sources .title") or "onerror" in browser.text("#reader-title")
    assert browser.js("document.querySelectorAll('#reader img').length") == 0
    assert browser.problems == []
    browser.press("Escape")


def test_characters_that_act_on_others_do_not_reach_the_page(browser: Browser, served: Page) -> None:
    served.engine.publish(
        "x\u202e", f"gnp{ACTING}.exe", f"The harbour {ACTING}was closed by fog.", source=f"The {ACTING}Example"
    )
    opened(browser, served)
    browser.ask(f"Why was the {ACTING}harbour closed?")
    read(browser, ".sources .title")
    shown = browser.js("document.body.innerText + document.title + document.querySelector('dialog[open]').innerText")
    assert not set(ACTING.replace("x", "").replace("0;", "").replace("]", "")) & set(shown)
    browser.press("Escape")


def test_right_to_left_articles_read_from_the_right(browser: Browser, served: Page) -> None:
    title, text = "افتتاح الجسر الجديد", "افتتح رئيس البلدية الجسر يوم الاثنين. وكلف الجسر اثني عشر مليونا."
    served.engine.publish("ar", title, text, source="صحيفة")
    opened(browser, served)
    assert browser.js("getComputedStyle(document.querySelector('#articles .title')).direction") == "rtl"
    assert browser.js("getComputedStyle(document.querySelector('#ask-title')).direction") == "ltr"
    browser.ask("من افتتح الجسر؟")
    for node in (".turn .asked", ".turn .said", ".sources .title"):
        assert browser.js(f"getComputedStyle(document.querySelector('{node}')).direction") == "rtl", node
    read(browser, ".sources .title")
    assert browser.js("getComputedStyle(document.querySelector('#reader-text p')).direction") == "rtl"
    assert browser.js("document.documentElement.scrollWidth") <= 1280
    browser.press("Escape")


@pytest.mark.parametrize("width", [390, 1280])
def test_long_and_missing_headlines_keep_their_place(browser: Browser, served: Page, width: int) -> None:
    served.engine.publish("wide", "W" * 400, "The harbour was closed by fog.")
    served.engine.publish("many", "Word after word " * 60, "The harbour was closed by fog.")
    served.engine.publish("none", None, "The harbour was closed by fog.")
    served.engine.publish("blank", " \u200b ", "The harbour was closed by fog.")
    browser.open(served.url, width, 844)
    live(browser)
    heights = "[...document.querySelectorAll('#articles .title')].map((node) => node.getBoundingClientRect().height)"
    assert max(browser.js(heights)) < 80
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert "Untitled (none)" in browser.text("#articles li[data-id=none]")
    assert "Untitled (blank)" in browser.text("#articles li[data-id=blank]")
    read(browser, "#articles li[data-id=many] .title")
    assert browser.js("document.getElementById('reader').scrollWidth <= document.getElementById('reader').clientWidth")
    browser.press("Escape")


def test_times_are_in_the_readers_language_with_the_moment_on_hover(
    browser: Browser, filled: Page, tmp_path: Path
) -> None:
    german = browser.another(tmp_path / "chromium", "de-DE")
    try:
        german.open(filled.url)
        live(german)
        until(lambda: "vor 4 Minuten" in german.text("#articles"))
        shown = german.js("document.querySelector('#articles time').title")
        year = str(datetime.now().year)
        assert year in shown
        assert any(
            day in shown for day in ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag")
        )
        assert german.js("!Number.isNaN(Date.parse(document.querySelector('#articles time').dateTime))")
    finally:
        german.close()
