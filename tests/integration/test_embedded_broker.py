"""The embedded broker: starting, attaching, refusing a taken port, and never outliving its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.errors import BrokerError, PortInUse
from services.settings import KafkaSettings
from services.stream.broker import EmbeddedBroker, open_broker
from services.stream.producer import DocumentProducer
from services.stream.reading import read_topic
from services.stream.record import Document
from services.stream.topics import topic_partitions
from tests.waiting import until

ROOT = Path(__file__).parents[2]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_open_broker_keeps_the_given_servers_and_starts_nothing(free_port: int) -> None:
    settings = KafkaSettings(bootstrap_servers="kafka-1:9092,kafka-2:9092", embedded_port=free_port)
    with open_broker(settings) as bootstrap:
        assert bootstrap == "kafka-1:9092,kafka-2:9092"
        assert not listens(free_port)


def test_open_broker_serves_records_and_stops_with_the_block(free_port: int) -> None:
    settings = KafkaSettings(embedded_port=free_port, topic="news", partitions=1)
    with open_broker(settings) as bootstrap:
        with DocumentProducer(settings, bootstrap) as producer:
            producer.send(Document("1", "Rain is coming."))
            producer.flush(5)
        assert [record.key for record in read_topic(settings, bootstrap, "news")] == [b"1"]
    until(lambda: not listens(settings.embedded_port), 2)


def test_second_broker_on_the_port_attaches_and_leaves_the_first_running(free_port: int) -> None:
    settings = KafkaSettings(embedded_port=free_port, topic="shared", partitions=3)
    with EmbeddedBroker(settings.embedded_port) as first:
        with DocumentProducer(settings, first.bootstrap):
            pass
        with EmbeddedBroker(settings.embedded_port) as second:
            assert (first.owned, second.owned) == (True, False)
            assert topic_partitions(settings, second.bootstrap, "shared") == 3
        assert topic_partitions(settings, first.bootstrap, "shared") == 3


def test_two_brokers_started_at_once_end_as_one(free_port: int) -> None:
    brokers = [EmbeddedBroker(free_port), EmbeddedBroker(free_port)]
    threads = [threading.Thread(target=broker.start) for broker in brokers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    try:
        assert sorted(broker.owned for broker in brokers) == [False, True]
    finally:
        for broker in brokers:
            broker.stop()
    until(lambda: not listens(free_port), 2)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["talks", "silent"])
def test_port_taken_by_something_else_is_one_line_and_quick(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        connections: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connections.append(other.accept()[0])
                    connections[-1].sendall(answer)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        port = other.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(PortInUse, match=f"^port {port} is in use .*$"):
            EmbeddedBroker(port).start()
        assert time.monotonic() - started < 6
        for connection in connections:
            connection.close()


def test_broker_survives_the_thread_that_started_it(free_port: int) -> None:
    broker = EmbeddedBroker(free_port)
    thread = threading.Thread(target=broker.start)
    thread.start()
    thread.join(15)
    try:
        time.sleep(0.3)
        assert listens(broker.port)
    finally:
        broker.stop()


def test_forked_child_that_ends_leaves_the_broker_running(free_port: int) -> None:
    with EmbeddedBroker(free_port) as broker:
        child = multiprocessing.get_context("fork").Process(target=broker.stop)
        child.start()
        child.join(10)
        assert child.exitcode == 0
        assert listens(broker.port)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["kill", "term", "exit"])
def test_broker_dies_with_its_parent(how: signal.Signals | None, free_port: int) -> None:
    wait = "time.sleep(60)" if how else ""
    code = f"""
import time
from services.stream.broker import EmbeddedBroker
broker = EmbeddedBroker({free_port})
broker.start()
print("up", flush=True)
{wait}
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        if how:
            assert listens(free_port)
            parent.send_signal(how)
        parent.wait(20)
    until(lambda: not listens(free_port), 3)


def test_broker_runs_from_where_it_was_installed_and_needs_no_home_folder(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/nowhere")
    with EmbeddedBroker(free_port):
        assert listens(free_port)


@pytest.mark.parametrize("mode", [0o644, None], ids=["not executable", "missing"])
def test_broker_that_cannot_be_run_is_one_line_with_its_path(
    mode: int | None, free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "tansu"
    if mode is not None:
        program.write_bytes(b"#!/bin/sh\n")
        program.chmod(mode)
    monkeypatch.setenv("CALF_TANSU_BIN", str(program))
    with pytest.raises(BrokerError, match=f"{program}.*set kafka.bootstrap_servers$"):
        EmbeddedBroker(free_port).start()


def test_program_on_a_folder_mounted_noexec_is_one_line(
    free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container's /tmp, as Docker mounts it."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "cmt-test", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs can't be mounted here")
    try:
        program = tmp_path / "tansu"
        program.write_bytes(b"#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.setenv("CALF_TANSU_BIN", str(program))
        with pytest.raises(BrokerError, match=f"{program}.*set kafka.bootstrap_servers$"):
            EmbeddedBroker(free_port).start()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
