"""A record that the broker refuses costs no other record: those behind it arrive, and the refusal is told by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient

from services.errors import RecordError, RecordsRefused
from services.feed.play import PlayReport, play
from services.settings import KafkaSettings
from services.stream.dead_letters import DeadLetters
from services.stream.producer import DocumentProducer
from services.stream.reading import read_topic
from services.stream.record import Document, RawRecord
from services.stream.replay import replay

MOST_BYTES = 20_000
LARGE = {5, 11, 12}


@pytest.fixture
def settings(broker: str, kafka_settings: KafkaSettings) -> KafkaSettings:
    """Those of a topic that takes small records only."""
    admin = KafkaAdminClient(bootstrap_servers=broker)
    configs = {"max.message.bytes": str(MOST_BYTES)}
    admin.create_topics({kafka_settings.topic: {"num_partitions": 2, "replication_factor": 1, "configs": configs}})
    admin.close()
    return kafka_settings


def documents(first: int, behind: int) -> list[Document]:
    return [
        Document(f"doc-{number}", "Large. " * 5000 if number in LARGE else f"Small number {number}.")
        for number in range(first, behind)
    ]


def arrived(settings: KafkaSettings, broker: str) -> list[str]:
    return sorted(record.key.decode() for record in read_topic(settings, broker, settings.topic) if record.key)


def small(first: int, behind: int) -> list[str]:
    return sorted(f"doc-{number}" for number in range(first, behind) if number not in LARGE)


def test_large_documents_are_refused_by_name_and_all_others_arrive_once(broker: str, settings: KafkaSettings) -> None:
    with DocumentProducer(settings, broker) as producer:
        for document in documents(0, 20):
            producer.send(document)
        with pytest.raises(RecordsRefused) as caught:
            producer.flush(60.0)
        assert caught.value.count == len(LARGE)
        assert all(f"doc-{number}" in str(caught.value) for number in LARGE)
        assert "max.message.bytes" in str(caught.value)
        for document in documents(20, 30):
            producer.send(document)
        producer.flush(60.0)
        assert producer.acknowledged == 27
    assert arrived(settings, broker) == small(0, 30)


def test_what_the_client_itself_refuses_is_no_end_either(
    broker: str, settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.producer._MAX_REQUEST_BYTES", 30_000)
    with DocumentProducer(settings, broker) as producer:
        for document in documents(0, 20):
            producer.send(document)
        with pytest.raises(RecordsRefused, match="doc-11"):
            producer.flush(60.0)
    assert arrived(settings, broker) == small(0, 20)


def test_feed_is_played_to_its_end(broker: str, settings: KafkaSettings) -> None:
    with DocumentProducer(settings, broker) as producer:
        assert play(iter(documents(0, 20)), producer) == PlayReport(sent=17, deleted=0, skipped=0, refused=3)
    assert arrived(settings, broker) == small(0, 20)


def test_letters_are_replayed_beside_those_that_the_topic_does_not_take(
    broker: str, settings: KafkaSettings, tmp_path: Path
) -> None:
    with DeadLetters(settings, broker) as letters:
        for offset, document in enumerate(documents(0, 20)):
            record = RawRecord(settings.topic, 0, offset, 0, document.id.encode(), document.to_json())
            letters.send(record, RecordError("schema", "was not understood"))
    report = replay(settings, broker)
    assert (report.sent, report.impossible) == (17, 3)
    assert arrived(settings, broker) == small(0, 20)
    assert replay(settings, broker).earlier == 20
