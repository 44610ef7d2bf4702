"""What the tests of the page share: the application on a real port with the real engine on the lexical model, and small looks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from services.metrics import Metrics, Snapshot
from services.query.engine.live import LiveEngine
from services.query.engine.messages import Ask, Event, Failure, Overview
from services.query.engine.ports import MemoryReader
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.integration.browser import Browser
from tests.integration.serve_desk import SlowModel
from tests.serving import Served, api_of, publish, swap_of
from tests.waiting import until

__all__ = ["ARTICLES", "Page", "live", "until_answered"]

ARTICLES = (
    ("bridge", "Aarhus opens its new harbour bridge", "Mayor Lund opened the bridge in Aarhus on Monday.", 4),
    ("ferry", "Storm stops the Samso ferry", "The ferry to Samso was cancelled by a storm on Sunday.", 55),
    ("comet", "Comet photographed over Skagen", "The comet Halvorsen was photographed over Skagen.", 190),
    ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)> in a title", "Markup in a feed is text.", 300),
)


class PageEngine(LiveEngine):
    """The real engine on the lexical model and the bank in memory, or on `bank`; `broken` makes that unreadable, `slow` lets an
    answer be watched. `asked` are the questions that reached it.
    """

    def __init__(self, slow: bool = False, bank: MemoryReader | None = None) -> None:
        self.model, self.bank = SlowModel() if slow else LexicalModel(), InMemoryBank()
        super().__init__(swap_of(self.model, bank or self.bank))
        self.broken = False
        self.asked: list[Ask] = []

    def publish(self, doc_id: str, title: str | None, text: str, minutes_ago: float = 0, **about: Any) -> None:
        at = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        url = "javascript:alert(1)" if "<" in doc_id else f"https://news.example/{doc_id}"
        known: dict[str, Any] = {"url": url, "source": "The Example", "published_at": at, "ingested_at": at}
        publish(self.bank, self.model, doc_id, text, title, **known | about)

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        self.asked.append(ask)
        if self.broken:
            yield Failure("bank", "the disk is gone")
            return
        async for event in super().ask(ask):
            yield event

    @property
    def writing(self) -> int:
        """Answers that are being written."""
        return self._swap.current.running

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

    def __init__(self, slow: bool = False, bank: MemoryReader | None = None) -> None:
        self.engine = PageEngine(slow, bank)
        super().__init__(api_of(self.engine, snapshots=ingest_snapshots))


def live(browser: Browser) -> None:
    until(lambda: browser.text("#status-text") == "Live", within_s=60)


def until_answered(browser: Browser) -> None:
    """The latest turn has all its answers."""
    browser.page.wait_for_function(
        "() => { const turn = document.querySelector('.turn');"
        " return turn && !turn.querySelector('.waiting, .writing') && !turn.querySelector('[aria-busy]'); }",
        timeout=20_000,
    )
