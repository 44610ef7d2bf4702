"""Other producers' records through a real broker, consumer and bank, and their dead letters again under corrected settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.bank.reader import BankReader
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.ingest.compressor import CompressorWorker
from services.ingest.consumer import Consumer
from services.metrics import Metrics
from services.settings import KafkaSettings, Settings
from services.stream.dead_letters import DeadLetters
from services.stream.producer import DocumentProducer
from services.stream.reading import read_topic
from services.stream.record import Document
from services.stream.replay import replay
from services.stream.source import KafkaSource
from services.testing.lexical import load_lexical
from tests.waiting import until

EPOCH = 100
KEY = json.dumps({"schema": {"type": "struct"}, "payload": {"id": 17}}).encode()
DEBEZIUM: dict[str, Any] = {
    "field_map": {
        "id": ["payload.after.id", "payload.before.id"],
        "text": "payload.after.body",
        "title": "payload.after.headline",
        "metadata.desk": "payload.after.desk",
    },
    "key_map": {"id": "payload.id"},
    "deleted_if": {"payload.op": "d"},
}
IN_SHORT: dict[str, Any] = {name: DEBEZIUM["field_map"][name] for name in ("text", "title", "metadata.desk")}
IN_SHORT = {"field_map": IN_SHORT | {"id": "payload.after.id"}}
"""The rest follows from `after`."""
Record = tuple[bytes | None, bytes | None]


def event(op: str, headline: str = "") -> Record:
    after = {"id": 17, "headline": headline, "body": f"{headline} on Monday.", "desk": "north"} if headline else None
    payload = {"before": {"id": 17}, "after": after, "op": op}
    return KEY, json.dumps({"schema": {}, "payload": payload}).encode()


class Stream:
    """A topic, its bank, and a consumer between them for as long as `reading` lasts."""

    def __init__(self, kafka: KafkaSettings, broker: str, folder: Path) -> None:
        self.kafka, self.broker, self.uri = kafka, broker, str(folder / "bank")
        self.metrics = Metrics()
        self.bank = BankReader(self.uri, None, 0)

    def send(self, *records: Record) -> None:
        with DocumentProducer(self.kafka, self.broker) as producer:
            for key, value in records:
                producer.send_raw(key, value)
            producer.flush(10)

    def read(self, **shape: Any) -> None:
        """Everything that the topic holds and the group has not read, under these settings."""
        kafka = self.kafka.model_copy(update=shape)
        with self._consumer(Settings(kafka=kafka)) as consumer:
            until(lambda: self._is_read(consumer), 30.0, seen=consumer.status)

    @contextmanager
    def _consumer(self, settings: Settings) -> Iterator[Consumer]:
        kafka, worker = settings.kafka, CompressorWorker(settings, load_lexical, self.metrics)
        layout: BankLayout = worker.layout()
        with BankWriter(self.uri, layout) as writer:
            consumer = Consumer(
                settings,
                lambda on_revoked: KafkaSource(kafka, self.broker, on_revoked),
                lambda: DeadLetters(kafka, self.broker),
                worker.compress,
                writer.commit,
                lambda: EPOCH,
                self.metrics,
                depth=1,
            )
            consumer.start()
            try:
                yield consumer
            finally:
                assert consumer.stop(20.0)

    def _is_read(self, consumer: Consumer) -> bool:
        status = consumer.status()
        assert status.failure is None
        read_all = len(status.lag) == self.kafka.partitions and not sum(status.lag.values())
        return read_all and not status.in_flight_records and status.measured > 1

    def title(self, doc_id: str = "17") -> str | None:
        found = self.bank.get(doc_id)
        return found.title if found else None

    def letters(self) -> list[str]:
        topic = self.kafka.dlq_topic
        return [dict(one.headers)["cmt-reason"].decode() for one in read_topic(self.kafka, self.broker, topic)]


@pytest.fixture
def stream(broker: str, kafka_settings: KafkaSettings, tmp_path: Path) -> Stream:
    return Stream(kafka_settings, broker, tmp_path)


@pytest.mark.parametrize("shape", [DEBEZIUM, IN_SHORT], ids=["in full", "in short"])
@pytest.mark.parametrize("deletion", [event("d"), (KEY, None), (KEY, b""), (KEY, b"null")])
def test_a_row_follows_its_change_events_to_its_deletion(
    stream: Stream, deletion: Record, shape: dict[str, Any]
) -> None:
    stream.send(event("c", "A press was found"), event("u", "The press was dated"))
    stream.read(**shape)
    assert stream.title() == "The press was dated"
    versions = stream.bank.history("17")
    assert [(one.title, one.metadata) for one in versions] == [
        ("The press was dated", {"desk": "north"}),
        ("A press was found", {"desk": "north"}),
    ][: len(versions)]
    stream.send(deletion)
    stream.read(**shape)
    assert stream.title() is None
    assert stream.bank.history("17")[0].deleted_at is not None
    assert stream.letters() == []


def test_letters_are_read_again_under_the_settings_that_ingest_has_now(stream: Stream) -> None:
    stream.send(event("c", "A press was found"), (b'{"id": 17}', b"\0\0\0\0\7{"))
    stream.read()
    assert sorted(stream.letters()) == ["schema", "schema_registry"]
    assert stream.title() is None
    assert replay(stream.kafka, stream.broker, lambda letter: letter.reason == "schema").sent == 1
    stream.read(**DEBEZIUM)
    assert stream.title() == "A press was found"
    assert len(stream.letters()) == 2


def test_a_deletion_that_named_no_document_deletes_once_its_key_is_understood(stream: Stream) -> None:
    stream.send(event("c", "A press was found"))
    stream.read(**DEBEZIUM)
    stream.send((KEY, None))
    stream.read(**DEBEZIUM | {"key_map": {"id": "payload.story_id"}})
    assert stream.letters() == ["no_key"]
    assert stream.title() == "A press was found"
    assert replay(stream.kafka, stream.broker).sent == 1
    stream.read(**DEBEZIUM)
    assert stream.title() is None


def test_this_programs_own_records_are_read_beside_those_of_another_producer(stream: Stream) -> None:
    stream.send(event("c", "A press was found"))
    with DocumentProducer(stream.kafka, stream.broker) as producer:
        producer.send(Document("own", "Our own document.", title="Own"))
        producer.flush(10)
    stream.read(**DEBEZIUM)
    assert (stream.title(), stream.title("own")) == ("A press was found", "Own")
    with DocumentProducer(stream.kafka, stream.broker) as producer:
        producer.delete("17")  # as DELETE /v1/documents/17 does
        producer.delete("own")
        producer.flush(10)
    stream.read(**DEBEZIUM)
    assert (stream.title(), stream.title("own"), stream.letters()) == (None, None, [])


def test_documents_under_any_key_are_read_and_their_keys_counted(stream: Stream) -> None:
    values = {name: json.dumps({"id": name, "text": f"Text of {name}.", "published_at": 12}).encode() for name in "abc"}
    stream.send((b"tenant", values["a"]), (b"\xff\xfe", values["b"]), (b"c", values["c"]), (None, values["c"]))
    stream.read()
    assert all(stream.bank.get(name) for name in values)
    assert stream.metrics.snapshot().numbers["cmt_ingest_left_out_fields_total"] == {("key",): 2, ("published_at",): 4}
    assert stream.letters() == []


def test_document_with_a_time_that_cannot_be_true_is_in_the_bank_and_a_letter_says_so_once(stream: Stream) -> None:
    times = {
        "a": "0001-01-01T00:00:00+01:00",
        "b": "9999-12-31T23:59:59-05:00",
        "c": "yesterday",
        "d": "0001-01-01T00:00:00Z",
    }
    for doc_id, time in times.items():
        value = json.dumps({"id": doc_id, "text": f"Text of {doc_id}.", "title": doc_id, "published_at": time})
        stream.send((doc_id.encode(), value.encode()))
    stream.read()
    assert [stream.title(doc_id) for doc_id in times] == list(times)
    assert stream.letters() == ["bad_time", "bad_time"]
    numbers = stream.metrics.snapshot().numbers
    assert numbers["cmt_ingest_dead_letters_total"] == {("bad_time",): 2}
    assert numbers["cmt_ingest_records_total"] == {("written",): 4}
    assert replay(stream.kafka, stream.broker).sent == 2
    stream.read()
    assert len(stream.letters()) == 2
