"""What no producer should write, and what transactions write, through a real broker: everything behind it is read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from typer.testing import CliRunner

from services.commands.tree import app
from services.errors import RecordError
from services.settings import KafkaSettings
from services.stream.dead_letter_reader import DeadLetter, read_letters
from services.stream.dead_letters import DeadLetters
from services.stream.progress import partition_progress
from services.stream.reading import read_topic
from services.stream.record import Document, RawRecord
from services.stream.replay import replay
from services.stream.rewind import rewind
from services.stream.source import AssignedSource
from services.stream.topics import ensure_topics
from tests.record_batches import CODECS, Record, batch, changed, produce_batch

GOOD: list[Record] = [
    (f"d{number}".encode(), Document(f"d{number}", "The ferry sails. " * 20).to_json(), []) for number in range(3)
]


@pytest.fixture
def one_partition(kafka_settings: KafkaSettings, broker: str) -> KafkaSettings:
    settings = kafka_settings.model_copy(update={"partitions": 1})
    ensure_topics(settings, broker)
    return settings


def produce(settings: KafkaSettings, broker: str, *batches: bytes) -> None:
    for one in batches:
        produce_batch(broker, settings.topic, 0, one)


def read_and_commit(settings: KafkaSettings, broker: str, up_to: int) -> tuple[list[RawRecord], dict[int, int]]:
    """The records that are read until `up_to` is reached, and the lag once this is committed."""
    with AssignedSource(settings, broker) as source:
        source.assign({0})
        records: list[RawRecord] = []
        deadline = time.monotonic() + 20.0
        while source.read_up_to().get(0, 0) < up_to:
            assert time.monotonic() < deadline, (source.read_up_to(), records)
            records += source.poll(0.2, 100)
        records += source.poll(0.3, 100)
        assert source.commit(source.read_up_to())
        return records, source.lag()


@pytest.mark.parametrize("codec", CODECS)
def test_batches_of_every_codec_are_read(one_partition: KafkaSettings, broker: str, codec: str) -> None:
    produce(one_partition, broker, batch(GOOD, codec=codec))
    records, lag = read_and_commit(one_partition, broker, 3)
    assert [(one.key, one.value) for one in records] == [(key, value) for key, value, _ in GOOD]
    assert lag == {0: 0}


def test_a_header_name_that_is_not_utf8_hides_nothing(one_partition: KafkaSettings, broker: str) -> None:
    named = batch([(b"a", b"first", [("header", b"x")]), (b"b", b"second", [])])
    produce(one_partition, broker, changed(named, named.index(b"header"), b"\xff\xfe"), batch(GOOD))
    records, lag = read_and_commit(one_partition, broker, 5)
    assert [one.key for one in records] == [b"a", b"b", b"d0", b"d1", b"d2"]
    assert lag == {0: 0}


@pytest.fixture
def damaged(one_partition: KafkaSettings, broker: str) -> KafkaSettings:
    """A good batch, two that can't be decoded, a good one. Kafka checks what it takes, the embedded broker does not."""
    zstd = changed(batch(GOOD, codec="zstd"), 63, b"\xff\xff\xff")
    crc = changed(batch(GOOD), 100, b"zz", checksum=False)
    try:
        produce(one_partition, broker, batch(GOOD), zstd, crc, batch(GOOD))
    except AssertionError as refused:
        pytest.skip(str(refused))
    return one_partition


def test_batches_that_cant_be_decoded_are_stepped_over(damaged: KafkaSettings, broker: str) -> None:
    records, lag = read_and_commit(damaged, broker, 12)
    places = [(one.offset, one.covers, bool(one.undecodable)) for one in records]
    expected = [(3, 3, True), (6, 3, True), *((offset, 1, False) for offset in (0, 1, 2, 9, 10, 11))]
    assert places == sorted(expected)
    assert lag == {0: 0}


def test_status_and_dead_letters_survive_batches_that_cant_be_decoded(
    damaged: KafkaSettings, broker: str, tmp_path: Path
) -> None:
    flags = ["--topic", damaged.topic, "--bootstrap-servers", broker]
    shown = CliRunner().invoke(app, ["ingest", "status", "--json", *flags, "--bank", str(tmp_path / "bank")])
    assert json.loads(shown.stdout)["lag"] == 12
    broken = [one for one in read_topic(damaged, broker, damaged.topic) if one.undecodable]
    with DeadLetters(damaged, broker) as sink:
        assert sink.send_all([(one, RecordError("undecodable", one.undecodable), 7) for one in broken]) == [None, None]
    produce_batch(broker, damaged.dlq_topic, 0, changed(batch(GOOD), 100, b"zz", checksum=False))
    listed = CliRunner().invoke(app, ["dlq", "list", "--json", *flags])
    facts = sorted((one["reason"], one["offset"], one["bytes"]) for one in map(json.loads, listed.stdout.splitlines()))
    assert [(reason, offset) for reason, offset, _ in facts] == [("", 0), ("undecodable", 3), ("undecodable", 6)]
    assert all(n_bytes > 100 for *_, n_bytes in facts)
    replayed = CliRunner().invoke(app, ["dlq", "replay", "--all", *flags])
    assert isinstance(replayed.exception, RecordError)
    assert "2 hold no record" in str(replayed.exception)


@pytest.fixture
def transactional(one_partition: KafkaSettings, broker: str) -> Iterator[Any]:
    producer = KafkaProducer(bootstrap_servers=broker, transactional_id=one_partition.topic)
    producer.init_transactions()
    yield producer
    producer.close(timeout=5)


def test_aborted_records_are_never_read_and_leave_no_lag(
    one_partition: KafkaSettings, broker: str, transactional: Any
) -> None:
    for name, end in (("a", "commit"), ("b", "abort"), ("c", "commit"), ("d", "abort")):
        transactional.begin_transaction()
        for number in range(2):
            transactional.send(one_partition.topic, key=f"{name}{number}".encode(), value=b"{}").get(timeout=10)
        getattr(transactional, f"{end}_transaction")()
    records, lag = read_and_commit(one_partition, broker, 12)
    assert [one.key for one in records] == [b"a0", b"a1", b"c0", b"c1"]
    assert lag == {0: 0}
    assert partition_progress(one_partition, broker)[0].lag == 0
    uncommitted = one_partition.model_copy(update={"isolation_level": "read_uncommitted"})
    assert len(list(read_topic(uncommitted, broker, one_partition.topic))) == 8


def test_an_open_transaction_holds_reading_back_but_is_no_lag(
    one_partition: KafkaSettings, broker: str, transactional: Any
) -> None:
    produce(one_partition, broker, batch(GOOD))
    transactional.begin_transaction()
    transactional.send(one_partition.topic, key=b"open", value=b"{}").get(timeout=10)
    produce(one_partition, broker, batch(GOOD))
    records, lag = read_and_commit(one_partition, broker, 3)
    assert len(records) == 3
    assert lag == {0: 0}
    assert partition_progress(one_partition, broker)[0].lag == 0
    transactional.commit_transaction()
    records, lag = read_and_commit(one_partition, broker, 8)
    assert [one.key for one in records] == [b"open", b"d0", b"d1", b"d2"]
    assert lag == {0: 0}


def test_two_producers_whose_transactions_interleave_are_told_apart(
    one_partition: KafkaSettings, broker: str, transactional: Any
) -> None:
    other = KafkaProducer(bootstrap_servers=broker, transactional_id=f"{one_partition.topic}-2")
    other.init_transactions()
    transactional.begin_transaction()
    other.begin_transaction()
    for number in range(4):
        for producer, name in ((transactional, "kept"), (other, "withdrawn")):
            producer.send(one_partition.topic, key=f"{name}{number}".encode(), value=b"{}").get(timeout=10)
    other.abort_transaction()
    transactional.commit_transaction()
    other.close(timeout=5)
    records, lag = read_and_commit(one_partition, broker, 10)
    assert [one.key for one in records] == [f"kept{number}".encode() for number in range(4)]
    assert lag == {0: 0}


def test_reading_again_from_a_time_steps_over_records_whose_times_lie_ahead(
    kafka_settings: KafkaSettings, broker: str, now_ms: int
) -> None:
    one_partition = kafka_settings.model_copy(update={"partitions": 1})
    admin = KafkaAdminClient(bootstrap_servers=broker)
    configs = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    admin.create_topics({one_partition.topic: {"num_partitions": 1, "replication_factor": -1, "configs": configs}})
    admin.close()
    hour_ms = 3_600_000
    times_ms = [now_ms - 9 * hour_ms, 2**62, 253_402_300_800_000_000, now_ms + 400 * 24 * hour_ms, -1]
    times_ms += [now_ms - 8 * hour_ms, now_ms - 7 * hour_ms, (now_ms - 2 * hour_ms) * 1000, now_ms - hour_ms]
    produce(one_partition, broker, *(batch(GOOD[:1], time_ms=time_ms) for time_ms in times_ms))
    for hours, offset in ((10, 0), (7.5, 6), (3, 7), (1.5, 8)):
        moment = datetime.fromtimestamp((now_ms - hours * hour_ms) / 1000, UTC)
        assert rewind(one_partition, broker, moment) == {0: offset}
    assert rewind(one_partition, broker, datetime(1, 1, 1, tzinfo=UTC)) == {0: 0}
    assert rewind(one_partition, broker, datetime(2200, 1, 1, tzinfo=UTC)) == {0: 9}
    age_s = partition_progress(one_partition, broker)[0].oldest_age_s
    assert age_s is None
    rewind(one_partition, broker, None)
    age_s = partition_progress(one_partition, broker)[0].oldest_age_s
    assert age_s == pytest.approx(9 * 3600, abs=600)


def letters_of(settings: KafkaSettings, broker: str, *records: RawRecord) -> list[DeadLetter]:
    with DeadLetters(settings, broker) as sink:
        assert sink.send_all([(one, RecordError("schema", "why"), 7) for one in records]) == [None] * len(records)
    return sorted(read_letters(settings, broker), key=lambda letter: letter.offset)


def test_a_letter_keeps_any_time_and_a_replay_only_what_a_broker_takes(
    one_partition: KafkaSettings, broker: str, now_ms: int
) -> None:
    times_ms = [now_ms - 5000, now_ms + 10**11, -1, 0]
    records = [RawRecord("documents", 0, number, time_ms, b"k", b"v") for number, time_ms in enumerate(times_ms)]
    assert [one.timestamp_ms for one in letters_of(one_partition, broker, *records)] == [*times_ms[:3], 0]
    assert replay(one_partition, broker).sent == 4
    sent_ms = [one.timestamp_ms for one in read_topic(one_partition, broker, one_partition.topic)]
    assert sent_ms[0] == times_ms[0]
    assert all(now_ms - 60_000 < time_ms < now_ms + 600_000 for time_ms in sent_ms[1:])


def test_a_record_that_the_dead_letter_topic_cant_take_leaves_a_letter_that_names_its_place(
    one_partition: KafkaSettings, broker: str, now_ms: int
) -> None:
    huge = RawRecord("documents", 2, 4, now_ms, b"k", bytes(65 * 2**20), (("origin", b"wire"),))
    unspeakable = RawRecord("documents", 2, 5, now_ms, b"k", b"v", (("half \ud83d", b"x"),))
    fine = RawRecord("documents", 2, 6, now_ms, b"k", b"v", (("cmt-left-out", b"forged"),))
    first, second, third = letters_of(one_partition, broker, huge, unspeakable, fine)
    assert (first.topic, first.partition, first.offset, first.epoch) == ("documents", 2, 4, 7)
    assert first.left_out == f"1 bytes of key, {65 * 2**20} of value, 1 headers"
    assert (second.offset, second.left_out) == (5, "1 bytes of key, 1 of value, 1 headers")
    assert (third.value, third.left_out) == (b"v", "")
    report = replay(one_partition, broker)
    assert (report.sent, report.impossible) == (1, 2)
