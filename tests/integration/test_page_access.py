"""Who can use the page, in a real browser: by keyboard, by ear, with weak eyes, without motion."""

from __future__ import annotations

import pytest

from tests.integration.browser import Browser, needs_chromium
from tests.integration.page_desk import Page, live, until_answered
from tests.waiting import until

pytestmark = needs_chromium

BRIDGE = "Who opened the bridge in Aarhus?"
VISIBLE_TEXTS = """[...document.querySelectorAll('body *')].filter((node) => node.checkVisibility({visibilityProperty: true})
    && !node.closest('.hidden, .skip') && [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim()))"""
# WCAG's contrast of every visible text with what is painted behind it
CONTRASTS = f"""(() => {{
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', {{willReadFrequently: true}});
    const rgba = (colour) => {{
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    }};
    const light = (colour) => {{
        const [r, g, b] = [...colour].map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }};
    const behind = (node) => {{
        for (let one = node; one; one = one.parentElement) {{
            const colour = rgba(getComputedStyle(one).backgroundColor);
            if (colour[3] === 255) return colour;
        }}
        return rgba('white');
    }};
    return {VISIBLE_TEXTS}.map((node) => {{
        const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.textContent.trim().slice(0, 40)];
    }});
}})()"""


def opened(browser: Browser, page: Page, width: int = 1280, dark: bool = False) -> None:
    browser.open(page.url, width, 900, dark)
    live(browser)


def test_every_control_has_a_name_and_enter_asks(browser: Browser, filled: Page) -> None:
    opened(browser, filled)
    nameless = """[...document.querySelectorAll('input, textarea, button')].filter((node) =>
        !(node.labels?.length || node.textContent.trim() || node.getAttribute('aria-label'))).map((node) => node.id)"""
    assert browser.js(nameless) == []
    browser.js("document.getElementById('question').focus()")
    browser.write(BRIDGE)
    browser.press("Enter")
    until(lambda: "Lund" in browser.text(".answer .said"))
    browser.js("document.activeElement.blur()")
    browser.press("/")
    assert browser.js("document.activeElement.id") == "question"
    assert browser.text("#question") == ""


def test_everything_is_reached_and_opened_by_keyboard(browser: Browser, filled: Page) -> None:
    opened(browser, filled)
    browser.press("Tab")
    assert browser.js("document.activeElement.className") == "skip"
    browser.press("Enter")
    assert browser.js("document.activeElement.id") == "question"
    browser.write(BRIDGE)
    browser.press("Control+Enter")
    until(lambda: browser.js("document.querySelectorAll('.side .bar.time').length") == 3)
    reached = set()
    for _ in range(60):
        browser.press("Tab")
        reached.add(
            browser.js(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        outlined = browser.js(
            "getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement === document.body"
            " || document.activeElement.matches('.models input')"
        )
        assert outlined, browser.js("document.activeElement.outerHTML")
    assert {"send", "compare", "past", "fresh", "history-open", "theme", "title", "SUMMARY"} <= reached


def test_reader_takes_the_focus_and_gives_it_back(browser: Browser, filled: Page) -> None:
    opened(browser, filled)
    browser.ask(BRIDGE)
    browser.js("document.querySelector('.sources .title').focus()")
    browser.press("Enter")
    until(lambda: browser.text("#reader-text mark") != "")
    assert browser.js("document.getElementById('reader').contains(document.activeElement)")
    for _ in range(6):
        browser.press("Tab")
        assert browser.js(
            "document.activeElement === document.body || document.getElementById('reader').contains(document.activeElement)"
        )
    browser.press("Escape")
    assert browser.js("document.activeElement.matches('.sources .title')")


def test_escape_in_the_reader_stops_no_answer(browser: Browser, slow: Page) -> None:
    slow.engine.publish("long", "A long story", f"The story {'goes on and ' * 40} ends.")
    opened(browser, slow)
    browser.choose("cmt-memory")
    browser.send("How does the story go on?")
    until(lambda: "goes on and goes" in browser.text(".answer.writing .said"))
    browser.js("document.querySelector('#articles .title').click()")
    until(lambda: "story" in browser.text("#reader-text"))
    browser.press("Escape")
    assert not browser.js("document.getElementById('reader').open")
    assert browser.js("document.querySelector('.answer.stopped')") is None
    assert slow.engine.busy
    browser.press("Escape")
    until(lambda: "Stopped." in browser.text(".answer.stopped .note"))


def test_who_listens_hears_the_answer_once_and_no_clock(browser: Browser, slow: Page) -> None:
    slow.engine.publish("long", "A long story", f"The story {'goes on and ' * 20} ends.")
    opened(browser, slow)
    browser.js("""window.heard = []; const live = '[aria-live], [role=status], [role=alert], [role=log]';
        for (const node of document.querySelectorAll(live))
        new MutationObserver(() => window.heard.push(node.textContent))
            .observe(node, {childList: true, characterData: true, subtree: true});""")
    browser.send("How does the story go on?")
    until_answered(browser)
    until(lambda: browser.js("window.heard.length") > 0)
    heard = browser.js("window.heard")
    assert len(heard) == 1, heard
    assert heard[0].startswith("Answer: The story goes on")
    assert heard[0].endswith("1 source.")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_text_is_large_enough_and_stands_out(browser: Browser, filled: Page, width: int, dark: bool) -> None:
    filled.engine.publish("gone", None, "Nobody knows.")
    opened(browser, filled, width, dark)
    browser.ask("Is there anything about giraffes?")
    browser.ask(BRIDGE)
    browser.js("document.getElementById('compare').click()")
    until(lambda: browser.js("document.querySelectorAll('.side .bar.time').length") == 3)
    for summary in ("main .more", "main .how"):
        browser.js(f"document.querySelector('{summary}').open = true")
    browser.js(
        "document.getElementById('past').value = 1; document.getElementById('past').dispatchEvent(new Event('input'))"
    )
    for _ in range(2):  # the page, then the reader above it
        sizes = browser.js(
            f"{VISIBLE_TEXTS}.map((node) => [parseFloat(getComputedStyle(node).fontSize), node.outerHTML.slice(0, 80)])"
        )
        assert [small for small in sizes if small[0] < 14] == []
        assert [weak for weak in browser.js(CONTRASTS) if weak[0] < 4.5] == []
        browser.js("document.querySelector('#articles .title').click()")
        until(lambda: browser.text("#reader-foot") != "")
    browser.press("Escape")


def test_reduced_motion_is_kept_to(browser: Browser, slow: Page) -> None:
    slow.engine.publish("long", "A long story", f"The story {'goes on and ' * 40} ends.")
    opened(browser, slow)
    browser.page.emulate_media(reduced_motion="reduce")
    browser.choose("cmt-memory")
    browser.send("How does the story go on?")
    until(lambda: "goes on and goes" in browser.text(".answer.writing .said"))
    assert browser.js("document.getAnimations().length") == 0
    browser.press("Escape")
    browser.page.emulate_media(reduced_motion="no-preference")
