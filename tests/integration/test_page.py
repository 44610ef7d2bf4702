"""The page in a real browser: headless Chromium, driven over its DevTools socket, against a really served application.

Skipped, with the reason printed, where no Chromium is installed. `PAGE_SCREENSHOTS=folder` keeps the screenshots.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.metrics import Metrics, Snapshot
from services.query.engine.live import LiveEngine
from services.query.engine.messages import UNKNOWN, Ask, Event, Failure, Overview
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.integration.browser import Browser, needs_chromium
from tests.integration.serve_desk import SlowModel
from tests.serving import Served, api_of, publish, swap_of
from tests.waiting import until

pytestmark = needs_chromium

ARTICLES = (
    ("bridge", "Aarhus opens its new harbour bridge", "Mayor Lund opened the bridge in Aarhus on Monday.", 4),
    ("ferry", "Storm stops the Samso ferry", "The ferry to Samso was cancelled by a storm on Sunday.", 55),
    ("comet", "Comet photographed over Skagen", "The comet Halvorsen was photographed over Skagen.", 190),
    ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)> in a title", "Markup in a feed is text.", 300),
)


class PageEngine(LiveEngine):
    """The real engine on the lexical model; `broken` makes the bank unreadable, `slow` lets an answer be watched."""

    def __init__(self, slow: bool = False) -> None:
        self.model, self.bank = SlowModel() if slow else LexicalModel(), InMemoryBank()
        super().__init__(swap_of(self.model, self.bank))
        self.broken = False

    def publish(self, doc_id: str, title: str, text: str, minutes_ago: float = 0) -> None:
        at = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        url = "javascript:alert(1)" if "<" in doc_id else f"https://news.example/{doc_id}"
        about: Any = {"url": url, "source": "The Example", "published_at": at, "ingested_at": at}
        publish(self.bank, self.model, doc_id, text, title, **about)

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        if self.broken:
            yield Failure("bank", "the disk is gone")
            return
        async for event in super().ask(ask):
            yield event

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        return Failure("bank", "the disk is gone") if self.broken else await super().overview(n, namespace)


async def ingest_snapshots() -> list[Snapshot]:
    metrics = Metrics()
    metrics.count("cmt_ingest_records_total", 5, outcome="stored")
    metrics.count("cmt_ingest_dead_letters_total", 1, reason="schema")
    metrics.gauge("cmt_ingest_lag_records", 3, partition="0")
    metrics.observe("cmt_ingest_freshness_seconds", 1.4)
    return [metrics.snapshot()]


class Page(Served):
    """The application on a real port."""

    def __init__(self, slow: bool = False) -> None:
        self.engine = PageEngine(slow)
        super().__init__(api_of(self.engine, snapshots=ingest_snapshots))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture
def served() -> Iterator[Page]:
    running = Page()
    yield running
    running.stop()


@pytest.fixture
def filled(served: Page) -> Page:
    for doc_id, title, text, minutes in ARTICLES:
        served.engine.publish(doc_id, title, text, minutes)
    return served


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PAGE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def live(browser: Browser) -> None:
    until(lambda: browser.text("#status-text") == "Live")


def test_page_shows_live_numbers_and_an_answer_with_its_sources(browser: Browser, filled: Page, pictures: Path) -> None:
    browser.open(filled.url)
    live(browser)
    assert browser.text("#c-documents") == "4"
    assert browser.text("#c-dead") == "1"
    assert browser.text("#c-lag") == "3waiting"
    assert browser.js("document.querySelectorAll('.spark path.line[d]').length") == 3
    browser.ask("Who opened the bridge in Aarhus?")
    assert browser.text(".answer .said") == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert browser.js("document.querySelector('.sources a').href") == "https://news.example/bridge"
    assert (
        browser.js("document.querySelectorAll('.sources .bar.weight rect').length") == 1
    )  # the others are not relevant
    until(lambda: browser.text("#c-questions") == "1")
    assert browser.screenshot(pictures / "desk.png") > 20_000


def test_new_article_appears_highlighted_without_a_reload(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    filled.engine.publish("new", "Parliament passes the budget", "Parliament passed the budget.")
    until(lambda: browser.text("#articles li.new .title") == "Parliament passes the budget", within_s=5)
    assert browser.text("#c-documents") == "5"


def test_markup_and_script_links_from_feeds_stay_text(browser: Browser, filled: Page) -> None:
    browser.problems.clear()
    browser.open(filled.url)
    live(browser)
    browser.ask("What is markup in a feed? <b>bold</b>")
    assert browser.js("document.querySelectorAll('#articles img, #answers img, #answers b:not(.facts b)').length") == 0
    assert browser.js("[...document.links].every((link) => /^https?:$/.test(link.protocol))")
    assert "onerror" in browser.text("#articles")
    assert browser.problems == []


@pytest.mark.parametrize(("width", "height", "dark"), [(400, 860, False), (400, 860, True), (1280, 900, True)])
def test_page_fits_its_window(
    browser: Browser, filled: Page, pictures: Path, width: int, height: int, dark: bool
) -> None:
    browser.open(filled.url, width, height, dark)
    live(browser)
    browser.ask("Why was the ferry to Samso cancelled?")
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.screenshot(pictures / f"{width}-{'dark' if dark else 'light'}.png") > 15_000


def test_empty_memory_is_explained(browser: Browser, served: Page, pictures: Path) -> None:
    browser.open(served.url)
    live(browser)
    assert "empty" in browser.text("#stream-empty")
    browser.ask("Who opened the bridge?")
    assert browser.text(".answer.unknown .said") == UNKNOWN
    assert "holds nothing" in browser.text(".answer .note")
    browser.screenshot(pictures / "empty.png")


def test_unreadable_bank_and_stopped_server_are_told_in_words(browser: Browser, filled: Page, pictures: Path) -> None:
    browser.open(filled.url)
    live(browser)
    filled.engine.broken = True
    until(lambda: browser.text("#status-text") == "Not ready")
    assert "the disk is gone" in browser.text("#problem")
    browser.ask("Who opened the bridge?")
    assert "the disk is gone" in browser.text(".answer.failed .said")
    filled.stop()
    until(lambda: browser.text("#status-text") == "Server not reachable", within_s=40)
    until(lambda: "can't be reached" in browser.text("#problem"))
    browser.screenshot(pictures / "down.png")


def test_every_control_has_a_name_and_enter_asks(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    nameless = """[...document.querySelectorAll('input, textarea, button')].filter((node) =>
        !(node.labels?.length || node.textContent.trim() || node.getAttribute('aria-label'))).map((node) => node.id)"""
    assert browser.js(nameless) == []
    browser.js("document.getElementById('question').focus()")
    browser.write("Who opened the bridge in Aarhus?")
    browser.press("Enter")
    until(lambda: "Lund" in browser.text(".answer .said"))
    browser.js("document.activeElement.blur()")
    browser.press("/")
    assert browser.js("document.activeElement.id") == "question"
    assert browser.text("#question") == ""


def test_answer_is_written_word_by_word_and_escape_stops_it(browser: Browser) -> None:
    page = Page(slow=True)
    page.engine.publish("long", "A long story", f"The story {'goes on and ' * 100} ends.")
    browser.open(page.url)
    live(browser)
    browser.js("document.getElementById('question').value = 'How does the story go on?'")
    browser.js("document.getElementById('send').click()")
    until(lambda: "goes on and goes" in browser.text(".answer.writing .said"))
    assert browser.js("!document.getElementById('stop').hidden")
    browser.press("Escape")
    until(lambda: browser.text(".answer.failed .said") == "Stopped.")
    assert browser.js("document.getElementById('stop').hidden")
    until(lambda: not page.engine.busy)  # the engine has stopped too
    page.stop()


def test_same_question_side_by_side_with_times(browser: Browser, filled: Page, pictures: Path) -> None:
    browser.open(filled.url)
    live(browser)
    browser.js("document.getElementById('question').value = 'Who opened the bridge in Aarhus?'")
    browser.js("document.getElementById('compare').click()")
    until(lambda: browser.js("document.querySelectorAll('.side .bar.time').length") == 3)
    said = browser.js("[...document.querySelectorAll('.side .said')].map((node) => node.textContent)")
    assert "Mayor Lund" in said[0]
    assert "Mayor Lund" in said[1]
    assert said[2] == "I do not know."
    names = browser.js("[...document.querySelectorAll('.side h3')].map((node) => node.textContent)")
    assert names == ["Memory", "Text in prompt", "No memory"]
    assert browser.screenshot(pictures / "compare.png") > 20_000


def test_slider_asks_the_same_question_in_the_past(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    browser.ask("Who opened the bridge in Aarhus?")
    assert "Lund" in browser.text(".answer .said")
    move = "(step) => { const s = document.getElementById('past'); s.value = step;"
    events = "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change')); }"
    browser.js(f"({move} {events})(5)")  # three hours ago: the bridge came 4 minutes ago
    until(lambda: browser.text(".group:first-child .answer.unknown .said") == UNKNOWN)
    assert "3 hours ago" in browser.text(".group:first-child .tag.past")
    browser.js(f"({move} {events})(12)")
    until(lambda: "Lund" in browser.text(".group:first-child .answer:not(.waiting) .said"))
    assert browser.js("document.querySelector('.group:first-child .tag.past')") is None


def test_theme_can_be_chosen_and_is_kept(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    light = browser.js("getComputedStyle(document.body).backgroundColor")
    browser.js("document.getElementById('theme').click()")
    dark = browser.js("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    browser.open(filled.url + "?again")
    assert browser.js("getComputedStyle(document.body).backgroundColor") == dark
    browser.js("localStorage.clear()")


def test_nothing_is_loaded_from_elsewhere(browser: Browser, filled: Page) -> None:
    browser.problems.clear()
    browser.open(filled.url)
    live(browser)
    loaded = browser.js("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert any(name.endswith("page.js") for name in loaded)
    assert all(name.startswith(filled.url) for name in loaded)
    assert browser.problems == []
