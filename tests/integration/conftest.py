"""Fixtures with a real broker (one embedded broker for the whole run, a fresh topic and group for every test), and of the page:
one browser for a file, a freshly served application for every test.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services.settings import KafkaSettings
from services.stream.broker import EmbeddedBroker

if TYPE_CHECKING:
    from tests.integration.browser import Browser
    from tests.integration.page_desk import Page


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    return find_free_port()


def find_free_port() -> int:
    """Below the ports that the system gives to clients: one of these could take it while a test's server is down."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def now_ms() -> int:
    """The time of this test, in epoch milliseconds: ages are told from it however long the tests before it took."""
    return int(time.time() * 1000)


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Bootstrap string of an embedded broker on a free port."""
    with EmbeddedBroker(find_free_port()) as running:
        assert running.owned
        yield running.bootstrap


@pytest.fixture
def kafka_settings(broker: str) -> KafkaSettings:
    """Settings whose embedded broker is `broker`, with a topic and a group that no other test uses."""
    return unique_kafka_settings(embedded_port=int(broker.rpartition(":")[2]), connect_timeout_s=3)


def unique_kafka_settings(**changes: Any) -> KafkaSettings:
    """Settings with a topic of two partitions and a group that no other test uses."""
    name = uuid.uuid4().hex[:12]
    return KafkaSettings.model_validate(
        {"topic": f"documents-{name}", "group_id": f"group-{name}", "partitions": 2} | changes
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    from tests.integration.browser import Browser

    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture
def served() -> Iterator[Page]:
    """The page on an empty memory."""
    yield from _page()


@pytest.fixture
def slow() -> Iterator[Page]:
    """The page on an empty memory, with answers that can be watched as they are written."""
    yield from _page(slow=True)


def _page(slow: bool = False) -> Iterator[Page]:
    from tests.integration.page_desk import Page

    running = Page(slow)
    yield running
    running.stop()


@pytest.fixture
def filled(served: Page) -> Page:
    """The page on a memory with some articles."""
    from tests.integration.page_desk import ARTICLES

    for doc_id, title, text, minutes in ARTICLES:
        served.engine.publish(doc_id, title, text, minutes)
    return served


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("PAGE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
