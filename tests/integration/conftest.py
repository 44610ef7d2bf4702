"""Fixtures with a real broker, the same for the whole run, and a fresh topic and group for every test.

It is an embedded broker, or the one at CMT_TEST_KAFKA (host:port), which `make test-kafka` sets.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import uuid
from collections.abc import Iterator

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


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Bootstrap string of the broker."""
    if outside := os.environ.get("CMT_TEST_KAFKA"):
        yield outside
        return
    with EmbeddedBroker(find_free_port()) as running:
        assert running.owned
        yield running.bootstrap


@pytest.fixture
def kafka_settings(broker: str) -> KafkaSettings:
    """Settings whose broker is `broker`, with a topic and a group that no other test uses."""
    name = uuid.uuid4().hex[:12]
    return KafkaSettings(
        bootstrap_servers=os.environ.get("CMT_TEST_KAFKA"),
        embedded_port=int(broker.rpartition(":")[2]),
        topic=f"documents-{name}",
        group_id=f"group-{name}",
        partitions=2,
        connect_timeout_s=3,
    )
