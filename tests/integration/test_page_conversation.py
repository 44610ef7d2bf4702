"""The page's conversation in a real browser: follow-ups, addresses, what is kept, and the way into the past."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.integration.browser import Browser, needs_chromium
from tests.integration.page_desk import Page, live, until_answered
from tests.waiting import until

pytestmark = needs_chromium

BRIDGE = "Who opened the bridge in Aarhus?"
FERRY = "Why was the ferry to Samso cancelled?"


def turns(browser: Browser) -> int:
    return int(browser.js("document.querySelectorAll('.turn').length"))


def asked_in_address(browser: Browser) -> dict[str, list[str]]:
    return parse_qs(urlsplit(browser.page.url).query)


def begin(browser: Browser, page: Page, *questions: str, query: str = "") -> None:
    browser.open(page.url + query)
    live(browser)
    for question in questions:
        browser.ask(question)


def slide(browser: Browser, *steps: int) -> None:
    """The slider as it is dragged, or moved by keys, one step after the other."""
    move = "s.value = step; s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'));"
    browser.js(f"const s = document.getElementById('past'); for (const step of {list(steps)}) {{ {move} }}")


def test_follow_up_is_asked_with_the_turns_before_it(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE, "And when?")
    assert filled.engine.asked[0].earlier == ()
    assert filled.engine.asked[1].earlier == ((BRIDGE, "Mayor Lund opened the bridge in Aarhus on Monday."),)
    assert turns(browser) == 2
    assert browser.text(".turn:first-child .asked") == "And when?"
    browser.js("document.getElementById('fresh').click()")
    assert turns(browser) == 0
    browser.ask(FERRY)
    assert filled.engine.asked[2].earlier == ()


def test_baseline_without_memory_hears_nothing_of_what_the_memory_said(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE, "And when?")
    browser.js("document.getElementById('compare').click()")
    until(lambda: browser.js("document.querySelectorAll('.side .bar.time').length") == 3)
    memory, text, closed = filled.engine.asked[2:]
    assert closed.mode == "closed"
    assert closed.earlier == ()
    assert [turn[0] for turn in memory.earlier] == [turn[0] for turn in text.earlier] == [BRIDGE]


def test_address_of_a_question_asks_it_wherever_it_is_opened(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE, "And when?")
    assert asked_in_address(browser) == {"q": [BRIDGE, "And when?"]}
    address = browser.page.url
    filled.engine.asked.clear()
    browser.js("localStorage.clear()")
    browser.page.goto("about:blank")
    browser.page.goto(address)
    until(lambda: len(filled.engine.asked) == 2 and turns(browser) == 2)
    until_answered(browser)
    assert filled.engine.asked[1].earlier == ((BRIDGE, "Mayor Lund opened the bridge in Aarhus on Monday."),)


def test_address_holds_what_was_chosen(browser: Browser, filled: Page) -> None:
    begin(browser, filled)
    browser.js("document.querySelector('[value=cmt-rag]').click()")
    browser.js("document.getElementById('top-k').value = 2")
    browser.ask(BRIDGE)
    assert asked_in_address(browser) == {"q": [BRIDGE], "from": ["cmt-rag"], "k": ["2"]}
    address = browser.page.url
    filled.engine.asked.clear()
    browser.page.goto("about:blank")
    browser.page.goto(address)
    until(lambda: len(filled.engine.asked) == 1)
    assert (filled.engine.asked[0].mode, filled.engine.asked[0].top_k) == ("rag", 2)
    assert browser.js("document.getElementById('top-k').value") == "2"


def test_reload_shows_the_conversation_without_asking_again(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE, FERRY)
    browser.page.reload()
    live(browser)
    assert turns(browser) == 2
    assert "storm" in browser.text(".turn:first-child .said")
    assert "Lund" in browser.text(".turn:last-child .said")
    assert len(filled.engine.asked) == 2
    browser.ask("And where?")
    assert len(filled.engine.asked[2].earlier) == 2


def test_back_and_forward_go_through_the_questions(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE, FERRY)
    browser.page.go_back()
    until(lambda: turns(browser) == 1)
    assert "Lund" in browser.text(".said")
    assert browser.js("document.title").startswith(BRIDGE)
    browser.page.go_back()
    until(lambda: turns(browser) == 0)
    browser.page.go_forward()
    browser.page.go_forward()
    until(lambda: turns(browser) == 2)
    assert len(filled.engine.asked) == 2


def test_earlier_questions_are_kept_over_a_reload_until_they_are_cleared(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE, "And when?")
    browser.js("document.getElementById('fresh').click()")
    browser.ask(FERRY)
    browser.open(filled.url)
    live(browser)
    assert turns(browser) == 0
    browser.js("document.getElementById('history-open').click()")
    assert browser.js("[...document.querySelectorAll('#history-list .title')].map((one) => one.textContent)") == [
        FERRY,
        BRIDGE,
    ]
    browser.js("document.querySelectorAll('#history-list .title')[1].click()")
    until(lambda: turns(browser) == 2)
    assert "Lund" in browser.text(".turn:last-child .said")
    assert len(filled.engine.asked) == 3  # shown, not asked again
    browser.js("document.getElementById('history-open').click()")
    browser.js("document.querySelector('#history-list .link').click()")  # Forget
    assert browser.js("document.querySelectorAll('#history-list li').length") == 1
    browser.js("document.getElementById('history-clear').click()")
    assert browser.js("document.querySelectorAll('#history-list li').length") == 0
    assert browser.js("localStorage.getItem('cmt-history')") is None
    browser.press("Escape")


def test_what_another_page_left_in_the_browser_does_no_harm(browser: Browser, filled: Page) -> None:
    begin(browser, filled)
    turn = '{"question": "Who?", "namespace": "default", "at": null, "models": ["cmt"], "answers": {}}'
    others = [
        turn.replace("cmt", "constructor"),
        turn.replace("{}", '{"cmt": null}'),
        turn.replace("{}", '{"cmt": {"state": "done"}}'),
    ]
    for rubbish in (
        "{",
        "[1, null, {}]",
        '[{"id": "x", "turns": []}]',
        f'[{{"id": "x", "turns": [{", ".join(others)}]}}]',
    ):
        browser.js(f"localStorage.setItem('cmt-history', {rubbish!r})")
        browser.js("history.replaceState({turns: 'none'}, '')")
        browser.problems.clear()
        begin(browser, filled, BRIDGE)
        assert "Lund" in browser.text(".said")
        browser.js("document.getElementById('history-open').click()")
        assert browser.js("document.querySelectorAll('#history-list li').length") == 1
        browser.press("Escape")
        browser.js("document.getElementById('fresh').click()")
        browser.js("localStorage.clear()")
        assert browser.problems == []


def test_link_with_nonsense_in_it_asks_what_can_be_read(browser: Browser, filled: Page) -> None:
    browser.problems.clear()
    begin(browser, filled, query="?q=Who+opened+the+bridge%3F&q=&from=constructor&at=yesterday&k=-3")
    until_answered(browser)
    (ask,) = filled.engine.asked
    assert (ask.question, ask.mode, ask.as_of, ask.top_k) == ("Who opened the bridge?", "auto", None, None)
    assert browser.problems == []


def test_question_that_takes_over_leaves_a_calm_note_behind(browser: Browser, slow: Page) -> None:
    slow.engine.publish("long", "A long story", f"The story {'goes on and ' * 60} ends.")
    begin(browser, slow)
    browser.choose("cmt-memory")
    browser.send("How does the story go on?")
    until(lambda: "goes on and goes" in browser.text(".answer.writing .said"))
    browser.send("Does the story end?")
    until(lambda: "Stopped." in browser.text(".turn:last-child .answer.stopped .note"))
    assert turns(browser) == 2
    assert browser.js("document.querySelector('.answer.failed')") is None
    browser.press("Escape")


def test_slider_asks_once_when_it_rests_and_replaces_the_answer(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE)
    slide(browser, 11, 10, 9, 8, 7, 6)  # an hour ago: the bridge came 4 minutes ago
    until(lambda: "an hour ago" in browser.text(".turn .tag.past"))
    until_answered(browser)
    assert browser.js("document.querySelector('.answer').className") == "answer unknown"
    assert len(filled.engine.asked) == 2
    assert turns(browser) == 1
    assert browser.js("document.querySelectorAll('.failed, .stopped').length") == 0
    assert "at" in asked_in_address(browser)
    slide(browser, 12)
    until(lambda: "Lund" in browser.text(".answer:not(.waiting) .said"))
    assert browser.js("document.querySelector('.turn .tag.past')") is None
    browser.page.go_back()
    until(lambda: "an hour ago" in browser.text(".turn .tag.past"))


def test_slider_that_moves_on_cancels_what_it_asked_before(browser: Browser, slow: Page) -> None:
    slow.engine.publish("long", "A long story", f"The story {'goes on and ' * 100} ends.", minutes_ago=300)
    begin(browser, slow)
    browser.choose("cmt-memory")
    browser.send("How does the story go on?")
    until(lambda: "goes on and goes" in browser.text(".answer.writing .said"))
    slide(browser, 11)
    until(lambda: len(slow.engine.asked) == 2)
    slide(browser, 10)
    until(lambda: len(slow.engine.asked) == 3)
    until(lambda: slow.engine.writing == 1)  # the first two are not written any more
    assert turns(browser) == 1
    assert browser.js("document.querySelectorAll('.failed, .stopped').length") == 0
    browser.press("Escape")


def test_before_the_first_document_the_page_says_when_the_memory_began(browser: Browser, filled: Page) -> None:
    begin(browser, filled, BRIDGE)
    slide(browser, 1)  # a week ago; the first document came 300 minutes ago
    assert "first article came 5 hours ago" in browser.text("#past-note")
    until(lambda: "first article came 5 hours ago" in browser.text(".answer.unknown .said"))
    assert len(filled.engine.asked) == 1


def test_link_into_the_past_is_answered_from_then(browser: Browser, filled: Page) -> None:
    began: Any = min(row.ingested_at for _, row in filled.engine.bank._rows)
    begin(browser, filled, query=f"?q=Who+opened+the+bridge%3F&at={began.strftime('%Y-%m-%dT%H:%M:%SZ')}")
    until_answered(browser)
    assert filled.engine.asked[0].as_of is not None
    assert "Lund" not in browser.text(".said")
    assert browser.js("document.getElementById('as-of').value") != ""


def test_namespaces_are_asked_and_shown(browser: Browser, filled: Page) -> None:
    filled.engine.publish("a/b?c#d", "Harbour closed", "The harbour was closed by fog.", namespace="nordic")
    begin(browser, filled)
    browser.page.click(".more summary")
    browser.page.fill("#namespace", "nordic")
    browser.press("Tab")
    until(lambda: browser.text("#articles .title") == "Harbour closed")
    assert browser.text("#stream-namespace") == "nordic"
    browser.ask("Why was the harbour closed?")
    assert "fog" in browser.text(".said")
    assert browser.text(".asked-head .tag") == "nordic"
    browser.page.click(".sources .title")
    until(lambda: "closed by fog" in browser.text("#reader-text"))
    assert "nordic" in browser.text("#reader-foot")
    browser.press("Escape")
