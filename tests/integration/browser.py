"""A headless Chromium for tests: Playwright drives the system's own one, so nothing is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Dialog, Error, Playwright, sync_playwright

__all__ = ["Browser", "needs_chromium"]

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed: the page is not tested in a browser"
)


class Browser:
    """One tab of a headless Chromium; `problems` collects what it complains about."""

    def __init__(self, folder: Path, locale: str = "en-GB", beside: Playwright | None = None) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self._own = None if beside else sync_playwright().start()
        self._playwright = beside or self._own
        assert self._playwright is not None
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        self._context = self._playwright.chromium.launch_persistent_context(
            folder, executable_path=CHROMIUM, headless=True, args=flags, locale=locale
        )
        self.page = self._context.pages[0] if self._context.pages else self._context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("dialog", self._dismiss)

    def _note(self, message: ConsoleMessage) -> None:
        """Keeps errors, blocked content included; a request that fails is told on the page and tested there."""
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    def _dismiss(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def another(self, folder: Path, locale: str) -> Browser:
        """One more browser, of a person who reads another language."""
        return Browser(folder, locale, self._playwright)

    def js(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.goto(url, wait_until="load")

    def text(self, selector: str) -> str:
        """What a person reads there, empty while there is no such element."""
        try:
            found = self.page.query_selector(selector)
            return found.inner_text() if found else ""
        except Error:  # the element was exchanged between the two looks
            return ""

    def choose(self, model: str) -> None:
        """What the next answers are read from; `cmt` holds an answer back until it was compared, `cmt-memory` does not."""
        self.page.click(f"label:has(> [value={model}])")

    def send(self, question: str) -> None:
        """Asks, without waiting for the answer."""
        self.page.fill("#question", question)
        self.page.click("#send")

    def ask(self, question: str) -> None:
        """Asks, and waits until the answer is whole."""
        turns = self.page.locator(".turn").count()
        self.send(question)
        self.page.wait_for_function(
            "turns => document.querySelectorAll('.turn').length > turns"
            " && !document.querySelector('.turn .waiting, .turn .writing')",
            arg=turns,
            timeout=20_000,
        )

    def write(self, text: str) -> None:
        """Text into the focused element, as it comes from a keyboard."""
        self.page.keyboard.insert_text(text)

    def press(self, key: str) -> None:
        """A key, as it comes from a keyboard."""
        self.page.keyboard.press(key)

    def screenshot(self, path: Path) -> int:
        """The whole page; returns the bytes of the picture."""
        return len(self.page.screenshot(path=path, full_page=True))

    def window_picture(self, path: Path) -> int:
        """What a person sees without scrolling, when all has come to rest; returns the bytes of the picture."""
        self.page.mouse.move(5, 5)
        self.page.wait_for_timeout(700)
        return len(self.page.screenshot(path=path))

    def close(self) -> None:
        self._context.close()
        if self._own is not None:
            self._own.stop()
