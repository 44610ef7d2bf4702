"""Fixtures with a real Apache Kafka; every test here is skipped, with the reason, where none can be started.

With CMT_TEST_KAFKA=host:port the claims about stream and ingest use the broker there; the others need brokers of our own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.settings import KafkaSettings
from tests.integration.conftest import free_port, now_ms, unique_kafka_settings
from tests.kafka.server import KafkaCluster, missing

# taken out of the environment: there is no such setting of the program under test
OUTSIDE = os.environ.pop("CMT_TEST_KAFKA", "")

__all__ = ["broker", "certificate", "free_port", "kafka", "kafka_can_run", "kafka_settings", "now_ms"]


@pytest.fixture(scope="session")
def kafka_can_run() -> None:
    """Skips what needs a Kafka of our own, for one of the reasons that `missing` gives."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem for 127.0.0.1, signed by itself, and keystore.pem with its key, in clear."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    folder = tmp_path_factory.mktemp("kafka-tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=127.0.0.1", "-noenc"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "keystore.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return folder


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory, kafka_can_run: None, certificate: Path) -> Iterator[KafkaCluster]:
    """One broker for the whole run, in clear and by SASL_SSL."""
    cluster = KafkaCluster(tmp_path_factory.mktemp("kafka"), certificate=certificate)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> str:
    """Bootstrap string of the real broker."""
    if OUTSIDE:
        return OUTSIDE
    own: KafkaCluster = request.getfixturevalue("kafka")
    return own.bootstrap


@pytest.fixture
def kafka_settings(broker: str) -> KafkaSettings:
    """Settings for that broker, with a topic and a group that no other test uses."""
    return unique_kafka_settings(bootstrap_servers=broker, connect_timeout_s=10)
