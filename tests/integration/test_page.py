"""The page in a real browser: headless Chromium, driven over its DevTools socket, against a really served application.

Here: the live side, asking, and what is told when something is wrong. test_page_conversation.py has what is kept,
test_page_articles.py what comes from outside, test_page_access.py who can use it. Skipped, with the reason printed, where no
Chromium is installed. `PAGE_SCREENSHOTS=folder` keeps the screenshots.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.query.engine.messages import UNKNOWN
from tests.integration.browser import Browser, needs_chromium
from tests.integration.page_desk import Page, live, until_answered
from tests.waiting import until

pytestmark = needs_chromium


def test_page_shows_live_numbers_and_an_answer_with_its_sources(browser: Browser, filled: Page, pictures: Path) -> None:
    browser.open(filled.url)
    live(browser)
    assert browser.text("#c-documents") == "4"
    assert browser.text("#c-dead") == "1"
    assert browser.text("#c-lag") == "3waiting"
    assert browser.text("#n-fresh") == "from Kafka to answerable"
    assert browser.js("document.querySelectorAll('.spark path.line[d]').length") == 3
    browser.ask("Who opened the bridge in Aarhus?")
    assert browser.text(".answer .said") == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert browser.text(".answer > .rest > .sources .title") == "Aarhus opens its new harbour bridge"
    until(lambda: browser.text("#c-questions") == "1")
    assert browser.screenshot(pictures / "desk.png") > 20_000


def test_answer_is_the_largest_text_and_how_it_came_about_is_folded(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    browser.ask("Who opened the bridge in Aarhus?")
    sizes = "[...document.querySelectorAll('main *')].filter((node) => node.checkVisibility() && node.innerText)"
    largest = f"Math.max(...{sizes}.map((node) => parseFloat(getComputedStyle(node).fontSize)))"
    assert browser.js(largest) == browser.js("parseFloat(getComputedStyle(document.querySelector('.said')).fontSize)")
    assert not browser.js("document.querySelector('.answer .how').open")
    assert "prompt tokens" not in browser.text(".answer")
    browser.js("document.querySelector('.answer .how summary').click()")
    assert "prompt tokens" in browser.text(".answer .how")
    assert "to find" in browser.text(".answer .how")


def test_new_article_appears_highlighted_without_a_reload(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    filled.engine.publish("new", "Parliament passes the budget", "Parliament passed the budget.")
    until(lambda: browser.text("#articles li.new .title") == "Parliament passes the budget", within_s=5)
    assert browser.text("#c-documents") == "5"


@pytest.mark.parametrize(("width", "height", "dark"), [(390, 844, False), (390, 844, True), (1280, 900, True)])
def test_page_fits_its_window(
    browser: Browser, filled: Page, pictures: Path, width: int, height: int, dark: bool
) -> None:
    browser.open(filled.url, width, height, dark)
    live(browser)
    browser.ask("Why was the ferry to Samso cancelled?")
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.screenshot(pictures / f"{width}-{'dark' if dark else 'light'}.png") > 15_000


def test_on_a_phone_the_question_comes_first_and_the_answer_into_view(browser: Browser, filled: Page) -> None:
    browser.open(filled.url, 390, 844)
    live(browser)
    top = "(selector) => document.querySelector(selector).getBoundingClientRect().top"
    assert browser.js(f"({top})('#question')") < 844 / 4
    assert browser.js(f"({top})('.counters')") > browser.js(f"({top})('.stream')") > browser.js(f"({top})('#form')")
    browser.ask("Who opened the bridge in Aarhus?")
    until(lambda: 0 <= browser.js(f"({top})('.said')") < 844 / 2)


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
    filled.engine.broken = False
    until(lambda: browser.text("#status-text") == "Live")
    browser.js("document.querySelector('.answer.failed button').click()")  # Ask again
    until(lambda: "Lund" in browser.text(".turn:first-child .said"))
    assert browser.js("document.querySelectorAll('.turn').length") == 1
    filled.stop()
    until(lambda: browser.text("#status-text") == "Server not reachable", within_s=40)
    until(lambda: "can't be reached" in browser.text("#problem"))
    browser.screenshot(pictures / "down.png")


def test_answer_is_written_word_by_word_and_escape_stops_it(browser: Browser, slow: Page) -> None:
    slow.engine.publish("long", "A long story", f"The story {'goes on and ' * 100} ends.")
    browser.open(slow.url)
    live(browser)
    browser.choose("cmt-memory")
    browser.send("How does the story go on?")
    until(lambda: "goes on and goes" in browser.text(".answer.writing .said"))
    assert browser.js("!document.getElementById('stop').hidden")
    browser.press("Escape")
    until(lambda: "Stopped." in browser.text(".answer.stopped .note"))
    assert "goes on and goes" in browser.text(".answer.stopped .said")  # what was written stays
    assert browser.js("document.getElementById('stop').hidden")
    until(lambda: not slow.engine.busy)  # the engine has stopped too


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
    names = browser.js("[...document.querySelectorAll('.side h4')].map((node) => node.textContent)")
    assert names == ["Memory", "Text in prompt", "No memory"]
    assert browser.screenshot(pictures / "compare.png") > 20_000


def test_compare_with_an_empty_box_compares_the_last_question(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    browser.ask("Who opened the bridge in Aarhus?")
    browser.js("document.getElementById('compare').click()")
    until(lambda: browser.js("document.querySelectorAll('.side .bar.time').length") == 3)
    assert browser.js("document.querySelectorAll('.turn').length") == 1


def test_starter_chips_are_questions_that_get_an_answer(browser: Browser, filled: Page) -> None:
    browser.open(filled.url)
    live(browser)
    until(lambda: browser.text("#chips") != "")
    chips = browser.js("[...document.querySelectorAll('#chips button')].map((chip) => chip.textContent)")
    assert chips == ["Who opened the bridge in Aarhus on Monday?"]  # of the other articles nobody did anything
    browser.js("document.querySelector('#chips button').click()")
    until_answered(browser)
    assert browser.text(".answer .said") == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert browser.js("document.getElementById('chips').hidden")  # a conversation needs none


def test_a_memory_that_can_answer_nothing_offers_no_chips(browser: Browser, served: Page) -> None:
    served.engine.publish("storm", "Weather", "Rain and wind.")
    browser.open(served.url)
    live(browser)
    until(lambda: browser.js("performance.getEntriesByType('resource').some((one) => /starters/.test(one.name))"))
    assert browser.js("document.getElementById('chips').hidden")


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
