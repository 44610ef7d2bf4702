"""What only a real Kafka does: access control, quotas, compaction, retention, limits of size."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    KafkaAdminClient,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)

from services.errors import BrokerError
from services.settings import KafkaSettings
from services.stream.dead_letter_reader import read_letters
from services.stream.producer import DocumentProducer
from services.stream.progress import partition_progress
from services.stream.reading import read_topic
from services.stream.record import Document
from services.stream.source import AssignedSource
from services.stream.topics import ensure_topics
from tests.kafka.reading import Ingest
from tests.kafka.server import KafkaCluster
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)
PASSWORD = "swordfish"


@contextmanager
def administered(kafka: KafkaCluster) -> Iterator[Any]:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        yield admin
    finally:
        admin.close()


def create(kafka: KafkaCluster, topic: str, partitions: int = 1, **configs: Any) -> None:
    named = {name.replace("_", "."): str(value) for name, value in configs.items()}
    with administered(kafka) as admin:
        admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1, "configs": named}})
        admin.wait_for_topics([topic], timeout_ms=20_000)


def send(settings: KafkaSettings, bootstrap: str, *documents: Document) -> None:
    with DocumentProducer(settings, bootstrap) as producer:
        for document in documents:
            producer.send(document)
        producer.flush(60.0)


def article(number: int, text: str = "") -> Document:
    return Document(f"d{number}", text or f"Bridge number {number} was opened by the harbour master.")


# Access


@pytest.fixture
def secured(kafka: KafkaCluster, kafka_settings: KafkaSettings, certificate: Path) -> KafkaSettings:
    """Settings of the user `desk`, who may do everything with the topic and its group, and only look at its letters."""
    ensure_topics(kafka_settings, kafka.bootstrap)
    with administered(kafka) as admin:
        made = admin.alter_user_scram_credentials([UserScramCredentialUpsertion("desk", "SCRAM-SHA-512", PASSWORD)])
        assert made == {"desk": None}
    allow(kafka, ResourceType.TOPIC, kafka_settings.topic, ACLOperation.ALL)
    allow(kafka, ResourceType.GROUP, kafka_settings.group_id, ACLOperation.ALL)
    allow(kafka, ResourceType.TOPIC, kafka_settings.dlq_topic, ACLOperation.DESCRIBE)
    access = {
        "bootstrap_servers": kafka.secured_bootstrap,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "desk",
        "sasl_password": PASSWORD,
        "ssl_cafile": certificate / "cert.pem",
        "connect_timeout_s": 20.0,
    }
    return KafkaSettings.model_validate(kafka_settings.model_dump() | access)


def allow(kafka: KafkaCluster, kind: ResourceType, name: str, operation: ACLOperation) -> None:
    rule = ACL("User:desk", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))
    with administered(kafka) as admin:
        assert not admin.create_acls([rule])["failed"]


def test_documents_travel_by_tls_for_a_user_with_the_right_password(
    kafka: KafkaCluster, secured: KafkaSettings
) -> None:
    send(secured, kafka.secured_bootstrap, article(1))
    assert [one.key for one in read_topic(secured, kafka.secured_bootstrap, secured.topic)] == [b"d1"]


@pytest.mark.parametrize(
    "changes", [{"sasl_password": "wrong"}, {"sasl_username": "nobody"}, {"sasl_mechanism": "PLAIN"}]
)
def test_who_is_not_let_in_is_told_so_in_one_line(
    kafka: KafkaCluster, secured: KafkaSettings, changes: dict[str, Any]
) -> None:
    refused = KafkaSettings.model_validate(secured.model_dump() | changes)
    with pytest.raises(BrokerError) as caught, AssignedSource(refused, kafka.secured_bootstrap):
        pass
    said = str(caught.value)
    assert "\n" not in said
    assert PASSWORD not in said
    assert "access refused" in said


def test_a_refusal_that_arrives_with_the_end_of_the_connection_is_told(
    kafka: KafkaCluster, secured: KafkaSettings
) -> None:
    refused = secured.model_copy(update={"sasl_username": "nobody"})
    with (
        end_sent_with_the_last_answer(kafka.secured_bootstrap) as bootstrap,
        pytest.raises(BrokerError, match="access refused"),
        AssignedSource(refused, bootstrap),
    ):
        pass


@contextmanager
def end_sent_with_the_last_answer(bootstrap: str) -> Iterator[str]:
    """The address of a proxy whose packets wait until they are full or the connection ends, as on a busy machine."""
    host, _, port = bootstrap.rpartition(":")

    def connect(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        broker = socket.create_connection((host, int(port)))
        Thread(target=pump, args=(client, broker), daemon=True).start()
        pump(broker, client)

    def serve(server: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                Thread(target=connect, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=serve, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hands on until one of them ends, and ends the other."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.mark.parametrize(
    "changes", [{"ssl_cafile": None}, {"security_protocol": "SASL_PLAINTEXT"}, {"security_protocol": "PLAINTEXT"}]
)
def test_a_broker_that_is_not_trusted_or_spoken_to_in_the_wrong_way_is_one_line(
    kafka: KafkaCluster, secured: KafkaSettings, changes: dict[str, Any]
) -> None:
    refused = KafkaSettings.model_validate(secured.model_dump() | {"connect_timeout_s": 3.0} | changes)
    with pytest.raises(BrokerError) as caught, AssignedSource(refused, kafka.secured_bootstrap):
        pass
    assert "\n" not in str(caught.value)


def test_a_topic_that_the_user_may_not_read_is_one_line(
    kafka: KafkaCluster, secured: KafkaSettings, kafka_settings: KafkaSettings
) -> None:
    hidden = f"{secured.topic}-hidden"
    ensure_topics(kafka_settings.model_copy(update={"topic": hidden}), kafka.bootstrap)
    closed = secured.model_copy(update={"topic": hidden, "create_topics": False})
    with pytest.raises(BrokerError) as caught, AssignedSource(closed, kafka.secured_bootstrap):
        pass
    assert hidden in str(caught.value)


def test_a_forbidden_dead_letter_topic_stops_one_partition_until_it_is_allowed(
    kafka: KafkaCluster, secured: KafkaSettings
) -> None:
    with KafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        producer.send(secured.topic, b"not json", key=b"bad", partition=0)
        for number in range(20):
            document = article(number)
            producer.send(secured.topic, document.to_json(), key=document.id.encode(), partition=number % 2)
    with Ingest(secured, kafka.secured_bootstrap) as ingest:
        ingest.until(lambda: set(ingest.consumer.status().stopped) == {0})
        assert "access refused" in ingest.consumer.status().stopped[0]
        ingest.until(lambda: partition_progress(secured, kafka.secured_bootstrap)[1].lag == 0)
        assert partition_progress(secured, kafka.secured_bootstrap)[0].committed in (None, 0)
        allow(kafka, ResourceType.TOPIC, secured.dlq_topic, ACLOperation.ALL)
        ingest.until_caught_up()
        assert ingest.live() == {f"d{number}" for number in range(20)}
    assert [one.reason for one in read_letters(secured, kafka.secured_bootstrap)] == ["not_json"]


# Sizes and speeds


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_what_a_producer_compresses_is_read(kafka: KafkaCluster, kafka_settings: KafkaSettings, codec: str) -> None:
    ensure_topics(kafka_settings, kafka.bootstrap)
    with KafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type=codec, linger_ms=50) as producer:
        for document in map(article, range(300)):
            producer.send(kafka_settings.topic, document.to_json(), key=document.id.encode())
    with Ingest(kafka_settings, kafka.bootstrap) as ingest:
        ingest.until_caught_up()
        assert ingest.live() == {f"d{number}" for number in range(300)}


def test_records_of_megabytes_are_read_and_larger_ones_named_in_a_letter_that_fits(
    kafka: KafkaCluster, kafka_settings: KafkaSettings
) -> None:
    settings = kafka_settings.model_copy(update={"partitions": 1, "max_record_bytes": 3_000_000})
    create(kafka, settings.topic, max_message_bytes=8_000_000)
    create(kafka, settings.dlq_topic, max_message_bytes=1_000_000)
    large = Document("large", "The harbour was dredged. " + "x" * 2_500_000)
    huge = Document("huge", "y" * 5_000_000)
    send(settings, kafka.bootstrap, article(1), large, huge, article(2))
    with Ingest(settings, kafka.bootstrap) as ingest:
        ingest.until_caught_up()
        assert {"d1", "d2", "large"} <= ingest.live()
    letters = {one.offset: one for one in read_letters(settings, kafka.bootstrap)}
    assert (letters[2].reason, letters[2].partition, letters[2].topic) == ("too_large", 0, settings.topic)
    assert "bytes of key" in letters[2].left_out


def test_quotas_slow_the_stream_down_and_lose_nothing(kafka: KafkaCluster, kafka_settings: KafkaSettings) -> None:
    command = ["--bootstrap-server", kafka.bootstrap, "--alter", "--entity-type", "clients", "--entity-default"]
    quota = "producer_byte_rate=200000,consumer_byte_rate=200000"
    kafka.tool("kafka.admin.ConfigCommand", *command, "--add-config", quota)
    try:
        send(kafka_settings, kafka.bootstrap, *(article(number, "A ferry sails. " * 100) for number in range(600)))
        with Ingest(kafka_settings, kafka.bootstrap) as ingest:
            ingest.until_caught_up(120.0)
            assert ingest.live() == {f"d{number}" for number in range(600)}
            assert len(ingest.records) == 600
    finally:
        kafka.tool("kafka.admin.ConfigCommand", *command, "--delete-config", "producer_byte_rate,consumer_byte_rate")


# Offsets that go away


def read_some(source: AssignedSource, at_least: int) -> list[int]:
    """Offsets of the next records, and then a pause."""
    found: list[int] = []
    end = time.monotonic() + 30.0
    while len(found) < at_least:
        assert time.monotonic() < end, found
        found += [one.offset for one in source.poll(0.2, 5)]
    source.pause()
    return found


def test_retention_under_a_slow_reader_leaves_neither_lag_nor_a_standstill(
    kafka: KafkaCluster, kafka_settings: KafkaSettings
) -> None:
    settings = kafka_settings.model_copy(update={"partitions": 1, "max_record_bytes": 1000})
    send(settings, kafka.bootstrap, *(article(number, "A ferry sails. " * 2000) for number in range(400)))
    with AssignedSource(settings, kafka.bootstrap) as source, administered(kafka) as admin:
        source.assign({0})
        assert read_some(source, 5) == [0, 1, 2, 3, 4]
        source.commit(source.read_up_to())
        admin.delete_records({TopicPartition(settings.topic, 0): 390})
        source.resume()
        seen: list[int] = []
        end = time.monotonic() + 30.0
        while source.read_up_to()[0] < 400:
            assert time.monotonic() < end, seen
            seen += [one.offset for one in source.poll(0.2, 100)]
        assert seen[-10:] == list(range(390, 400))
        assert len(seen) < 390, "what was fetched before is still given"
        assert source.commit(source.read_up_to())
        assert source.lag() == {0: 0}
    assert partition_progress(settings, kafka.bootstrap)[0].lag == 0


def test_a_topic_that_retention_has_emptied_is_no_lag(kafka: KafkaCluster, kafka_settings: KafkaSettings) -> None:
    settings = kafka_settings.model_copy(update={"partitions": 1})
    send(settings, kafka.bootstrap, *map(article, range(50)))
    with AssignedSource(settings, kafka.bootstrap) as source:
        source.assign({0})
        source.commit({0: 7})
    with administered(kafka) as admin:
        admin.delete_records({TopicPartition(settings.topic, 0): 50})
    with Ingest(settings, kafka.bootstrap) as ingest:
        ingest.until(lambda: partition_progress(settings, kafka.bootstrap)[0].committed == 50)
        ingest.until(lambda: ingest.consumer.status().lag == {0: 0})
        assert ingest.records == []


def test_records_that_retention_removes_by_their_time_are_no_lag(
    kafka: KafkaCluster, kafka_settings: KafkaSettings
) -> None:
    settings = kafka_settings.model_copy(update={"partitions": 1})
    create(kafka, settings.topic, retention_ms=3_600_000)
    with KafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for number in range(20):
            producer.send(settings.topic, article(number).to_json(), key=f"d{number}".encode(), timestamp_ms=1000)
    until(lambda: list(read_topic(settings, kafka.bootstrap, settings.topic)) == [], 60.0)
    send(settings, kafka.bootstrap, article(20))
    with Ingest(settings, kafka.bootstrap) as ingest:
        ingest.until_caught_up()
        assert ingest.live() == {"d20"}


def test_compaction_under_a_slow_reader_keeps_the_newest_of_every_document(
    kafka: KafkaCluster, kafka_settings: KafkaSettings
) -> None:
    settings = kafka_settings.model_copy(update={"partitions": 1, "max_record_bytes": 1000})
    create(
        kafka,
        settings.topic,
        cleanup_policy="compact",
        segment_ms=500,
        min_cleanable_dirty_ratio=0.01,
        max_compaction_lag_ms=1000,
    )
    versions = [Document(f"d{number % 5}", f"Version {number} of the tide table.") for number in range(300)]
    for first in range(0, 300, 60):
        send(settings, kafka.bootstrap, *versions[first : first + 60])
        time.sleep(0.6)  # so that the next record begins a segment: Kafka compacts closed ones only
    with AssignedSource(settings, kafka.bootstrap) as slow:
        slow.assign({0})
        read_some(slow, 5)
        send(settings, kafka.bootstrap, Document("last", "The last of all."))
        plain = settings.model_copy(update={"group_id": f"{settings.group_id}-look"})
        until(lambda: len(list(read_topic(plain, kafka.bootstrap, settings.topic))) < 150, 90.0)
        slow.resume()
        seen: list[tuple[int, bytes | None]] = []
        end = time.monotonic() + 30.0
        while slow.read_up_to()[0] < 301:
            assert time.monotonic() < end, seen[-3:]
            seen += [(one.offset, one.key) for one in slow.poll(0.2, 100)]
        assert [offset for offset, _ in seen] == sorted({offset for offset, _ in seen})
        assert {(295 + number, f"d{number}".encode()) for number in range(5)} | {(300, b"last")} <= set(seen)
        assert slow.commit(slow.read_up_to())
        assert slow.lag() == {0: 0}
    again = settings.model_copy(update={"group_id": f"{settings.group_id}-again"})
    with Ingest(again, kafka.bootstrap) as ingest:
        ingest.until_caught_up()
        assert ingest.live() == {"d0", "d1", "d2", "d3", "d4", "last"}
