"""The page in a real browser: headless Chromium, driven over its DevTools socket, against a really served application.

Skipped, with the reason printed, where no Chromium is installed. `PAGE_SCREENSHOTS=folder` keeps the screenshots.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn

from services.lexical import LexicalModel
from services.metrics import Metrics, Snapshot
from services.query.api import create_api
from services.query.engine import Answerer, Ask, Failure, Found, Overview, Reply
from services.query.memory_bank import InMemoryBank, StoredWindow
from services.query.service import QueryService
from services.settings import load_settings
from tests.integration.browser import Browser, needs_chromium, until

pytestmark = needs_chromium

NOW = datetime.now(UTC)
ARTICLES = (
    ("bridge", "Aarhus opens its new harbour bridge", "Mayor Lund opened the bridge in Aarhus on Monday.", 4),
    ("ferry", "Storm stops the Samso ferry", "The ferry to Samso was cancelled by a storm on Sunday.", 55),
    ("comet", "Comet photographed over Skagen", "The comet Halvorsen was photographed over Skagen.", 190),
    ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)> in a title", "Markup in a feed is text.", 300),
)


class LocalEngine:
    """The answerer in this process; `broken` makes the bank unreadable."""

    def __init__(self) -> None:
        self.model, self.bank = LexicalModel(), InMemoryBank()
        self._answerer = Answerer(self.model, self.bank)
        self.broken = False

    def publish(self, doc_id: str, title: str, text: str, minutes_ago: int = 0) -> None:
        at = NOW - timedelta(minutes=minutes_ago)
        url = "javascript:alert(1)" if "<" in doc_id else f"https://news.example/{doc_id}"
        window = StoredWindow(
            doc_id,
            text,
            self.model.pack(text),
            title=title,
            url=url,
            source="The Example",
            published_at=at,
            ingested_at=at,
        )
        self.bank.add(self.model.query_keys([text])[0], window)

    async def ask(self, ask: Ask) -> Reply | Failure:
        return Failure("bank", "the disk is gone") if self.broken else self._answerer.answer([ask])[0]

    async def search(self, ask: Ask) -> Found | Failure:
        return self._answerer.search(ask)

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        return Failure("bank", "the disk is gone") if self.broken else self._answerer.overview(n, namespace)


async def ingest_snapshots() -> list[Snapshot]:
    metrics = Metrics()
    metrics.count("cmt_ingest_records_total", 5, outcome="stored")
    metrics.count("cmt_ingest_dead_letters_total", 1, reason="schema")
    metrics.gauge("cmt_ingest_lag_records", 3, partition="0")
    metrics.observe("cmt_ingest_freshness_seconds", 1.4)
    return [metrics.snapshot()]


class Served:
    """The application on a real port, in a thread."""

    def __init__(self) -> None:
        self.engine = LocalEngine()
        service = QueryService(load_settings(), self.engine, Metrics(), ingest_snapshots)
        config = uvicorn.Config(create_api(service), host="127.0.0.1", port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture
def served() -> Iterator[Served]:
    running = Served()
    yield running
    running.stop()


@pytest.fixture
def filled(served: Served) -> Served:
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


def test_page_shows_live_numbers_and_an_answer_with_its_sources(
    browser: Browser, filled: Served, pictures: Path
) -> None:
    browser.open(filled.url)
    live(browser)
    assert browser.text("#c-documents") == "4"
    assert browser.text("#c-dead") == "1"
    assert "3 waiting" in browser.text("#n-rate")
    browser.ask("Who opened the bridge in Aarhus?")
    assert browser.text(".answer .said") == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert browser.js("document.querySelector('.sources a').href") == "https://news.example/bridge"
    assert browser.js("document.querySelectorAll('.sources .bar.weight').length") == 3
    until(lambda: browser.text("#c-questions") == "1")
    assert browser.screenshot(pictures / "desk.png") > 20_000


def test_new_article_appears_highlighted_without_a_reload(browser: Browser, filled: Served) -> None:
    browser.open(filled.url)
    live(browser)
    filled.engine.publish("new", "Parliament passes the budget", "Parliament passed the budget.")
    until(lambda: browser.text("#articles li.new .title") == "Parliament passes the budget", within_s=5)
    assert browser.text("#c-documents") == "5"


def test_markup_and_script_links_from_feeds_stay_text(browser: Browser, filled: Served) -> None:
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
    browser: Browser, filled: Served, pictures: Path, width: int, height: int, dark: bool
) -> None:
    browser.open(filled.url, width, height, dark)
    live(browser)
    browser.ask("Why was the ferry to Samso cancelled?")
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.screenshot(pictures / f"{width}-{'dark' if dark else 'light'}.png") > 15_000


def test_empty_memory_is_explained(browser: Browser, served: Served, pictures: Path) -> None:
    browser.open(served.url)
    live(browser)
    assert "empty" in browser.text("#stream-empty")
    browser.ask("Who opened the bridge?")
    assert "holds nothing" in browser.text(".answer .note")
    browser.screenshot(pictures / "empty.png")


def test_unreadable_bank_and_stopped_server_are_told_in_words(browser: Browser, filled: Served, pictures: Path) -> None:
    browser.open(filled.url)
    live(browser)
    filled.engine.broken = True
    until(lambda: browser.text("#status-text") == "Not ready")
    assert "the disk is gone" in browser.text("#problem")
    browser.ask("Who opened the bridge?")
    assert "the disk is gone" in browser.text(".answer.failed .said")
    filled.stop()
    until(lambda: browser.text("#status-text") == "Server not reachable")
    assert "can't be reached" in browser.text("#problem")
    browser.screenshot(pictures / "down.png")


def test_every_control_has_a_name_and_enter_asks(browser: Browser, filled: Served) -> None:
    browser.open(filled.url)
    live(browser)
    nameless = """[...document.querySelectorAll('input, textarea, button')].filter((node) =>
        !(node.labels?.length || node.textContent.trim() || node.getAttribute('aria-label'))).map((node) => node.id)"""
    assert browser.js(nameless) == []
    browser.js("document.getElementById('question').focus()")
    browser.send("Input.insertText", text="Who opened the bridge in Aarhus?")
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
    until(lambda: "Lund" in browser.text(".answer .said"))
