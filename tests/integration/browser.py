"""A headless Chromium for tests: Playwright drives the system's own one, so nothing is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Dialog, Error, sync_playwright

__all__ = ["Browser", "needs_chromium"]

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed: the page is not tested in a browser"
)


class Browser:
    """One tab of a headless Chromium; `problems` collects what it complains about."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self._playwright = sync_playwright().start()
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        self._context = self._playwright.chromium.launch_persistent_context(
            folder, executable_path=CHROMIUM, headless=True, args=flags
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

    def ask(self, question: str) -> None:
        self.page.fill("#question", question)
        self.page.click("#send")
        self.page.wait_for_selector(".answer:not(.waiting)", timeout=20_000)

    def write(self, text: str) -> None:
        """Text into the focused element, as it comes from a keyboard."""
        self.page.keyboard.insert_text(text)

    def press(self, key: str) -> None:
        """A key, as it comes from a keyboard."""
        self.page.keyboard.press(key)

    def screenshot(self, path: Path) -> int:
        """The whole page; returns the bytes of the picture."""
        return len(self.page.screenshot(path=path, full_page=True))

    def close(self) -> None:
        self._context.close()
        self._playwright.stop()
