"""Fixtures with a real broker: one embedded broker for the whole run, and a fresh topic and group for every test."""

from __future__ import annotations

import contextlib
import random
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from services.settings import KafkaSettings
from services.stream.broker import EmbeddedBroker


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
