"""Producing, reading, committing and dead-lettering through a real broker."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from services.errors import BrokerError, BrokerUnreachable, RecordError, SettingsError, TopicMissing
from services.settings import KafkaSettings
from services.stream.broker import EmbeddedBroker
from services.stream.dead_letters import DeadLetters
from services.stream.decode import decode
from services.stream.producer import DocumentProducer
from services.stream.reading import read_topic
from services.stream.record import Document, RawRecord, Tombstone
from services.stream.shape import RecordShape
from services.stream.source import AssignedSource, KafkaSource
from services.stream.topics import ensure_topics, topic_partitions
from tests.waiting import until

WAIT_S = 60.0


def produce(settings: KafkaSettings, broker: str, count: int, start: int = 0) -> None:
    with DocumentProducer(settings, broker) as producer:
        for number in range(start, start + count):
            producer.send(Document(f"doc-{number}", f"Text number {number}."))
        producer.flush(10)


def read(source: KafkaSource, count: int, wait_s: float = WAIT_S) -> list[RawRecord]:
    """Polls until `count` records came, and once more to see whether there are too many."""
    records: list[RawRecord] = []

    def came() -> bool:
        records.extend(source.poll(0.2, 100))
        return len(records) >= count

    until(came, wait_s, seen=lambda: records)
    return records + source.poll(0.3, 100)


def assigned_all(source: KafkaSource) -> bool:
    assert source.poll(0.1, 1) == []
    return source.assigned() == {0, 1}


def next_offsets(records: list[RawRecord]) -> dict[int, int]:
    return {record.partition: record.offset + 1 for record in sorted(records, key=lambda record: record.offset)}


def test_documents_arrive_as_they_were_sent(broker: str, kafka_settings: KafkaSettings) -> None:
    document = Document(
        "né-1",
        "Тексt with ünïcode.",
        title="A title",
        url="https://example.org/a?b=c",
        source="The Daily",
        published_at=datetime(2024, 5, 1, 12, 0, 0, 123456, UTC),
        lang="de",
        namespace="city",
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
        metadata={"section": "local"},
    )
    before_ms = int(time.time() * 1000)
    with DocumentProducer(kafka_settings, broker) as producer:
        producer.send(document)
        producer.delete("né-1", "city")
        producer.flush(10)
    with KafkaSource(kafka_settings, broker) as source:
        first, second = read(source, 2)
    assert decode(first) == document
    assert decode(second) == Tombstone("né-1", "city")
    assert (first.topic, first.key, second.value) == (kafka_settings.topic, "né-1".encode(), None)
    assert first.partition == second.partition
    assert (first.offset, second.offset) == (0, 1)
    assert before_ms - 1000 < first.timestamp_ms < before_ms + 60_000
    assert pickle.loads(pickle.dumps(second)) == second


def test_reading_resumes_at_the_committed_offsets(broker: str, kafka_settings: KafkaSettings) -> None:
    produce(kafka_settings, broker, 40)
    with KafkaSource(kafka_settings, broker) as source:
        records = read(source, 40)
        assert len({record.key for record in records}) == 40
        assert source.assigned() == {0, 1}
        half = [record for record in records if record.offset < 5]
        assert source.commit(next_offsets(half))
    with KafkaSource(kafka_settings, broker) as source:
        again = read(source, 30)
    assert {(r.partition, r.offset) for r in again} == {(r.partition, r.offset) for r in records if r.offset >= 5}


def test_without_a_commit_everything_is_read_again(broker: str, kafka_settings: KafkaSettings) -> None:
    produce(kafka_settings, broker, 10)
    for _ in range(2):
        with KafkaSource(kafka_settings, broker) as source:
            assert len(read(source, 10)) == 10


def test_records_of_one_document_keep_their_order(broker: str, kafka_settings: KafkaSettings) -> None:
    with DocumentProducer(kafka_settings, broker) as producer:
        for version in range(30):
            producer.send(Document(f"doc-{version % 3}", f"version {version}"))
        producer.flush(10)
    with KafkaSource(kafka_settings, broker) as source:
        documents = [decode(record) for record in read(source, 30)]
    for number in range(3):
        texts = [
            document.text for document in documents if isinstance(document, Document) and document.id[-1] == str(number)
        ]
        assert texts == [f"version {version}" for version in range(number, 30, 3)]


def test_paused_source_returns_nothing_and_loses_nothing(broker: str, kafka_settings: KafkaSettings) -> None:
    produce(kafka_settings, broker, 20)
    with KafkaSource(kafka_settings, broker) as source:
        first = source.poll(5, 3)
        while not first:
            first = source.poll(1, 3)
        source.pause()
        produce(kafka_settings, broker, 5, start=20)
        for _ in range(5):
            assert source.poll(0.1, 100) == []
        assert 20 <= sum(source.lag().values()) <= 25  # the embedded broker may tell its end up to a batch too low
        source.resume()
        seen = [(record.partition, record.offset) for record in first + read(source, 25 - len(first))]
        assert sum(source.lag().values()) == 25
    assert len(seen) == len(set(seen)) == 25


def test_partitions_assigned_while_paused_stay_paused(broker: str, kafka_settings: KafkaSettings) -> None:
    produce(kafka_settings, broker, 4)
    with KafkaSource(kafka_settings, broker) as source:
        source.pause()
        until(lambda: assigned_all(source), WAIT_S)
        assert source.poll(1, 10) == []
        source.resume()
        assert len(read(source, 4)) == 4


def test_lag_counts_records_that_are_not_committed(broker: str, kafka_settings: KafkaSettings) -> None:
    produce(kafka_settings, broker, 12)
    with KafkaSource(kafka_settings, broker) as source:
        assert source.lag() == {}
        records = read(source, 12)
        assert sum(source.lag().values()) == 12
        source.commit(next_offsets(records))
        assert source.lag() == {0: 0, 1: 0}
        produce(kafka_settings, broker, 3, start=12)
        read(source, 3)
        assert sum(source.lag().values()) == 3
    with KafkaSource(kafka_settings, broker) as source:
        read(source, 3)
        assert sum(source.lag().values()) == 3


def test_commit_from_a_second_thread_works_while_polling(broker: str, kafka_settings: KafkaSettings) -> None:
    produce(kafka_settings, broker, 50)
    with KafkaSource(kafka_settings, broker) as source:
        records = read(source, 50)
        stop = threading.Event()
        poller = keep_polling(source, stop)
        try:
            for end in range(1, len(records) + 1):  # False while the group settles, and then the next try succeeds
                until(lambda end=end: source.commit(next_offsets(records[:end])), 30.0)  # type: ignore[misc]
        finally:
            stop.set()
            poller.join(10)
        assert sum(source.lag().values()) == 0


def keep_polling(source: KafkaSource, stop: threading.Event) -> threading.Thread:
    def run() -> None:
        while not stop.is_set():
            source.poll(0.5, 1)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_second_member_takes_its_share_and_the_first_is_told(broker: str, kafka_settings: KafkaSettings) -> None:
    revoked: list[set[int]] = []
    stop = threading.Event()
    with KafkaSource(kafka_settings, broker, revoked.append) as first, KafkaSource(kafka_settings, broker) as second:
        until(lambda: assigned_all(first), WAIT_S)
        pollers = [keep_polling(source, stop) for source in (first, second)]
        until(lambda: len(first.assigned()) == len(second.assigned()) == 1, 60.0)
        shares = first.assigned(), second.assigned()
        told = list(revoked)
        refused = first.commit(dict.fromkeys(shares[1], 1))
        stop.set()
        for poller in pollers:
            poller.join(10)
    assert sorted(map(sorted, shares)) == [[0], [1]]
    assert refused is False
    assert told == [set(shares[1])]  # cooperative: what stays is never taken away


def test_a_named_member_that_joins_again_is_taken_up(broker: str, kafka_settings: KafkaSettings) -> None:
    stop = threading.Event()
    with (
        KafkaSource(kafka_settings, broker, member="one") as first,
        KafkaSource(kafka_settings, broker, member="two") as second,
    ):
        pollers = [keep_polling(source, stop) for source in (first, second)]
        coordinators = [source._consumer._coordinator for source in (first, second)]

        def shared() -> bool:
            joined = not any(one.need_rejoin() for one in coordinators)
            return joined and len(first.assigned()) == len(second.assigned()) == 1

        try:
            until(shared, 60.0)
            follower = next(one for one in coordinators if not one._is_leader)
            generation = follower._generation.generation_id
            follower.request_rejoin()
            until(lambda: follower._generation.generation_id > generation and shared(), 60.0)
        finally:
            stop.set()
        for poller in pollers:
            poller.join(10)


def test_closing_gives_the_partitions_back_and_tells_so(broker: str, kafka_settings: KafkaSettings) -> None:
    revoked: list[set[int]] = []
    with KafkaSource(kafka_settings, broker, revoked.append) as source:
        until(lambda: assigned_all(source), WAIT_S)
        assert revoked == []
    assert revoked == [{0, 1}]


def test_dead_letter_keeps_the_bytes_and_says_why(broker: str, kafka_settings: KafkaSettings) -> None:
    value, headers = b'\xff\x00{"id": NaN', [("trace", b"\x01\x02"), ("cmt-reason", b"older")]
    with DocumentProducer(kafka_settings, broker) as producer:
        producer.send_raw(b"key-\xfe", value, headers)
        producer.flush(10)
    with KafkaSource(kafka_settings, broker) as source, DeadLetters(kafka_settings, broker) as dead_letters:
        (record,) = read(source, 1)
        with pytest.raises(RecordError) as caught:
            decode(record)
        dead_letters.send(record, caught.value)
    (dead,) = read_topic(kafka_settings, broker, kafka_settings.dlq_topic)
    facts = dict(dead.headers)
    assert (dead.key, dead.value) == (b"key-\xfe", value)
    assert [name for name, _ in dead.headers].count("cmt-reason") == 1
    assert facts["trace"] == b"\x01\x02"
    assert facts["cmt-reason"] == b"not_utf8"
    assert facts["cmt-error"] == str(caught.value).encode()
    assert facts["cmt-topic"] == kafka_settings.topic.encode()
    assert (facts["cmt-partition"], facts["cmt-offset"]) == (str(record.partition).encode(), b"0")
    written = datetime.fromisoformat(facts["cmt-time"].decode())
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60


def test_dead_letter_without_key_or_value_is_kept_too(broker: str, kafka_settings: KafkaSettings) -> None:
    with DeadLetters(kafka_settings, broker) as dead_letters:
        dead_letters.send(RawRecord("t", 0, 7, 0, None, None), RecordError("no_key", "no key"))
        dead_letters.send(RawRecord("t", 0, 8, 0, b"\xff", None), RecordError("not_utf8", "bad key"))
    by_offset = {dict(r.headers)["cmt-offset"]: r for r in read_topic(kafka_settings, broker, kafka_settings.dlq_topic)}
    assert (by_offset[b"7"].key, by_offset[b"7"].value) == (None, b"")
    assert dict(by_offset[b"7"].headers)["cmt-null-value"] == b"1"
    assert (by_offset[b"8"].key, by_offset[b"8"].value) == (b"\xff", None)


def test_oversized_record_passes_the_source_into_the_dead_letters(broker: str, kafka_settings: KafkaSettings) -> None:
    settings = kafka_settings.model_copy(update={"max_record_bytes": 1000})
    value = b"x" * 3_000_000
    with DocumentProducer(settings, broker) as producer:
        producer.send_raw(b"big", value)
        producer.send_raw(b"big", b"after")
        producer.flush(10)
    with KafkaSource(settings, broker) as source, DeadLetters(settings, broker) as dead_letters:
        record, after = read(source, 2)
        with pytest.raises(RecordError) as caught:
            decode(record, RecordShape.of(settings))
        dead_letters.send(record, caught.value)
    assert (caught.value.reason, after.value) == ("too_large", b"after")
    (dead,) = read_topic(settings, broker, settings.dlq_topic)
    assert dead.value == value


def test_read_topic_stops_at_the_limit_and_at_the_end(broker: str, kafka_settings: KafkaSettings) -> None:
    produce(kafka_settings, broker, 9)
    assert len(list(read_topic(kafka_settings, broker, kafka_settings.topic, max_records=4))) == 4
    assert len(list(read_topic(kafka_settings, broker, kafka_settings.topic))) == 9


def test_topics_are_created_once_with_the_wanted_partitions(broker: str, kafka_settings: KafkaSettings) -> None:
    failures: list[BaseException] = []

    def ensure() -> None:
        try:
            ensure_topics(kafka_settings, broker)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert topic_partitions(kafka_settings, broker, kafka_settings.topic) == 2
    assert topic_partitions(kafka_settings, broker, kafka_settings.dlq_topic) == 2


@pytest.mark.parametrize("client", [KafkaSource, DocumentProducer, DeadLetters])
def test_missing_topic_is_an_error_when_it_may_not_be_created(
    client: Callable[[KafkaSettings, str], object], broker: str, kafka_settings: KafkaSettings
) -> None:
    settings = kafka_settings.model_copy(update={"create_topics": False})
    with pytest.raises(TopicMissing, match=f"^Kafka topic {settings.topic} does not exist at {broker}"):
        client(settings, broker)
    assert topic_partitions(settings, broker, settings.topic) == 0
    with pytest.raises(TopicMissing):
        next(read_topic(settings, broker, settings.topic))


@pytest.mark.parametrize("client", [KafkaSource, DocumentProducer, DeadLetters, ensure_topics])
def test_silent_address_is_unreachable_within_the_timeout(
    client: Callable[[KafkaSettings, str], object],
    kafka_settings: KafkaSettings,
    free_port: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = kafka_settings.model_copy(update={"connect_timeout_s": 1.0})
    bootstrap = f"127.0.0.1:{free_port}"
    before = threading.active_count()
    started = time.monotonic()
    with pytest.raises(BrokerUnreachable) as caught:
        client(settings, bootstrap)
    assert 0.9 < time.monotonic() - started < 3
    assert str(caught.value) == (
        f"no Kafka broker answers at {bootstrap} (waited 1 s): start it, or set kafka.bootstrap_servers"
    )
    assert threading.active_count() == before
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("bootstrap", ["no-such-host.invalid:9092", "host:not-a-port", ":", ""])
def test_useless_address_is_one_line(bootstrap: str, kafka_settings: KafkaSettings) -> None:
    settings = kafka_settings.model_copy(update={"connect_timeout_s": 1.0})
    with pytest.raises(BrokerError) as caught:
        KafkaSource(settings, bootstrap)
    assert "\n" not in str(caught.value)


def test_wrong_field_map_is_told_before_anything_is_read(broker: str, kafka_settings: KafkaSettings) -> None:
    settings = kafka_settings.model_copy(update={"field_map": {"titel": "headline"}})
    with pytest.raises(SettingsError, match="titel"):
        KafkaSource(settings, broker)


def test_vanished_broker_is_told_by_all_that_write(kafka_settings: KafkaSettings, free_port: int) -> None:
    settings = kafka_settings.model_copy(update={"bootstrap_servers": None, "connect_timeout_s": 1.0})
    with EmbeddedBroker(free_port) as own:
        source = KafkaSource(settings, own.bootstrap)
        producer = DocumentProducer(settings, own.bootstrap)
        dead_letters = DeadLetters(settings, own.bootstrap)
        producer.send(Document("1", "text"))
        producer.flush(5)
        (record,) = read(source, 1)
        own.stop()
        started = time.monotonic()
        assert source.poll(0.2, 10) == []
        with pytest.raises(BrokerError):
            source.commit({record.partition: 1})
        producer.send(Document("1", "text 2"))
        with pytest.raises(BrokerError):
            producer.flush(10)
        with pytest.raises(BrokerError):
            dead_letters.send(record, RecordError("schema", "bad"))
        for client in (source, producer, dead_letters):
            client.close()
        assert time.monotonic() - started < 20


def test_partitions_can_be_read_from_their_beginning_whatever_is_committed(
    broker: str, kafka_settings: KafkaSettings
) -> None:
    produce(kafka_settings, broker, 20)

    def read_assigned(expected: int, *, from_beginning: bool) -> list[RawRecord]:
        with AssignedSource(kafka_settings, broker) as source:
            source.assign({0, 1}, from_beginning)
            records: list[RawRecord] = []

            def came() -> bool:
                records.extend(source.poll(0.2, 100))
                return len(records) >= expected

            until(came, WAIT_S, seen=lambda: records)
            assert source.commit(next_offsets(records))
            source.assign({0, 1}, from_beginning=True)  # those that are read already go on where they are
            assert source.poll(0.3, 100) == []
        return records

    first = read_assigned(20, from_beginning=False)
    again = read_assigned(20, from_beginning=True)
    assert {(one.partition, one.offset) for one in again} == {(one.partition, one.offset) for one in first}
