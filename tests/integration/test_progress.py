"""Progress and rewinding from offsets alone, against a real broker."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from services.bank.records import Chunk, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.commands.tree import app
from services.errors import BrokerUnreachable, SettingsError, TopicMissing
from services.ingest.progress import unread
from services.query.gateway.stream_look import StreamView, look_at_kafka
from services.settings import KafkaSettings
from services.stream.producer import DocumentProducer
from services.stream.progress import partition_progress
from services.stream.record import RawRecord
from services.stream.rewind import rewind
from services.stream.source import AssignedSource
from services.stream.topics import ensure_topics
from tests.waiting import until


def fill(settings: KafkaSettings, broker: str, times_ms: list[int]) -> None:
    with DocumentProducer(settings, broker) as producer:
        for number, time_ms in enumerate(times_ms):
            producer.send_raw(f"d{number}".encode(), b"{}", timestamp_ms=time_ms)
        producer.flush(10.0)


def read_all(settings: KafkaSettings, broker: str, partitions: set[int]) -> list[tuple[int, int, int]]:
    with AssignedSource(settings, broker) as source:
        source.assign(partitions)
        found: list[tuple[int, int, int]] = []
        quiet = 0
        while quiet < 8:
            records = source.poll(0.1, 500)
            found += [(one.partition, one.offset, one.timestamp_ms) for one in records]
            quiet = 0 if records else quiet + 1
        return found


def test_assigned_partitions_are_read_from_what_is_committed(
    kafka_settings: KafkaSettings, broker: str, now_ms: int
) -> None:
    fill(kafka_settings, broker, [now_ms] * 40)
    everything = read_all(kafka_settings, broker, {0, 1})
    assert len(everything) == 40
    with AssignedSource(kafka_settings, broker) as source:
        assert source.poll(0.1, 10) == []
        source.assign({0})
        assert source.assigned() == {0}
        assert source.commit({0: 5, 1: 3}) is False, "a partition that is not assigned is left out"
        assert source.poll(1.0, 1), "this broker tells the true end with a fetch only"
        assert source.lag()[0] == max(offset for partition, offset, _ in everything if partition == 0) + 1 - 5
        source.assign({0, 1})
        source.assign({1})
        assert source.assigned() == {1}
    later = read_all(kafka_settings, broker, {0, 1})
    assert min(offset for partition, offset, _ in later if partition == 0) == 5
    assert min(offset for partition, offset, _ in later if partition == 1) == 0


def test_held_partitions_are_not_fetched_until_they_are_let_go(
    kafka_settings: KafkaSettings, broker: str, now_ms: int
) -> None:
    fill(kafka_settings, broker, [now_ms] * 40)
    with AssignedSource(kafka_settings, broker) as source:
        source.hold({0})
        source.assign({0, 1})
        source.pause()
        source.resume()
        first = [one for _ in range(15) for one in source.poll(0.1, 500)]
        assert {one.partition for one in first} == {1}
        source.hold(set())
        then = [one for _ in range(15) for one in source.poll(0.1, 500)]
        assert {one.partition for one in then} == {0}
        assert len(first) + len(then) == 40


@pytest.mark.parametrize("stops", ["hold", "pause"])
def test_a_partition_that_stops_in_the_middle_of_a_fetch_goes_on_where_it_stood(
    stops: str, kafka_settings: KafkaSettings, broker: str, now_ms: int
) -> None:
    """While it is stopped another partition is read to its end and asked for more, as one that never stops would be."""
    fill(kafka_settings, broker, [now_ms] * 60)
    with AssignedSource(kafka_settings, broker) as source:
        source.assign({0, 1})
        first: list[RawRecord] = []
        until(lambda: first.extend(source.poll(0.1, 1)) or first, 30.0)
        stopped = first[0].partition
        source.hold({stopped})
        if stops == "pause":
            source.pause()
            assert [one for _ in range(3) for one in source.poll(0.1, 500)] == []
            source.resume()
        other = [one for _ in range(15) for one in source.poll(0.1, 500)]
        assert {one.partition for one in other} == {1 - stopped}
        source.hold(set())
        rest: list[RawRecord] = []
        until(lambda: rest.extend(source.poll(0.1, 500)) or len(first + other + rest) >= 60, 30.0, seen=lambda: rest)
    assert [one.offset for one in first + rest] == list(range(len(first + rest)))
    assert len(first + other + rest) == 60


def test_progress_tells_lag_and_the_age_of_the_oldest_record(
    kafka_settings: KafkaSettings, broker: str, now_ms: int
) -> None:
    fill(kafka_settings, broker, [now_ms - 60_000] * 30)
    before = partition_progress(kafka_settings, broker)
    assert [one.committed for one in before] == [None, None]
    assert sum(one.lag for one in before) == 30
    with AssignedSource(kafka_settings, broker) as source:
        source.assign({0, 1})
        source.commit({0: before[0].end, 1: 1})
    after = partition_progress(kafka_settings, broker)
    assert [(one.partition, one.committed, one.lag) for one in after] == [
        (0, before[0].end, 0),
        (1, 1, before[1].end - 1),
    ]
    assert after[0].oldest_age_s is None
    assert after[1].oldest_age_s is not None
    assert after[1].oldest_age_s >= 60.0


def test_progress_of_a_topic_that_is_missing(kafka_settings: KafkaSettings, broker: str) -> None:
    with pytest.raises(TopicMissing):
        partition_progress(kafka_settings, broker)
    with pytest.raises(TopicMissing):
        rewind(kafka_settings, broker, None)


def test_rewinding_to_the_beginning_and_to_a_time(kafka_settings: KafkaSettings, broker: str, now_ms: int) -> None:
    fill(kafka_settings, broker, [now_ms - 10_000 + number * 100 for number in range(100)])
    with AssignedSource(kafka_settings, broker) as source:
        source.assign({0, 1})
        source.commit({one.partition: one.end for one in partition_progress(kafka_settings, broker)})
    assert read_all(kafka_settings, broker, {0, 1}) == []
    moment = datetime.fromtimestamp((now_ms - 5_000) / 1000, UTC)
    rewind(kafka_settings, broker, moment)
    again = read_all(kafka_settings, broker, {0, 1})
    assert sorted(time_ms for _, _, time_ms in again) == [now_ms - 10_000 + number * 100 for number in range(50, 100)]
    rewind(kafka_settings, broker, datetime.fromtimestamp(now_ms / 1000 + 99, UTC))
    assert read_all(kafka_settings, broker, {0, 1}) == []
    rewind(kafka_settings, broker, None)
    assert len(read_all(kafka_settings, broker, {0, 1})) == 100


def status(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["ingest", "status", "--json", *arguments])
    if result.exception:
        raise result.exception
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_status_command_needs_nothing_that_runs(
    kafka_settings: KafkaSettings, broker: str, tmp_path: Path, now_ms: int
) -> None:
    fill(kafka_settings, broker, [now_ms] * 12)
    flags = ["--topic", kafka_settings.topic, "--bootstrap-servers", broker, "--bank", str(tmp_path / "bank")]
    empty = status(*flags)
    assert (empty["lag"], empty["documents"], empty["bank_version"]) == (12, 0, 0)
    layout = BankLayout("m", 4, 8)
    with BankWriter(str(tmp_path / "bank"), layout) as writer:
        chunk = Chunk("x", np.ones(4), b"m" * 8, 1)
        position = Position(1, 0, 0, datetime.now(UTC))
        writer.commit([DocumentWrite("default", "a", None, None, None, None, None, position, (chunk,))])
    full = status(*flags)
    assert full["documents"] == 1
    assert full["documents_per_s"] == pytest.approx(1 / 60, abs=0.01)
    shown = CliRunner().invoke(app, ["ingest", "status", *flags]).stdout
    assert "1 documents" in shown
    assert "partition" in shown


def test_status_starts_no_broker(free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMT_KAFKA__EMBEDDED_PORT", str(free_port))
    monkeypatch.setenv("CMT_KAFKA__CONNECT_TIMEOUT_S", "1")
    with pytest.raises(BrokerUnreachable):
        status("--bank", str(tmp_path / "bank"))


@pytest.mark.parametrize("flags", [["--from-beginning", "--from-time", "2026-01-01"], ["--from-time", "yesterday"]])
def test_backfill_flags_that_make_no_sense(flags: list[str]) -> None:
    assert isinstance(CliRunner().invoke(app, ["ingest", *flags]).exception, SettingsError)


def test_page_sees_lag_and_dead_letters_in_kafka_where_ingest_reports_nothing(
    kafka_settings: KafkaSettings, broker: str, now_ms: int
) -> None:
    settings = kafka_settings.model_copy(update={"bootstrap_servers": broker})
    fill(settings, broker, [now_ms] * 20)
    with AssignedSource(settings, broker) as source:
        source.assign({0, 1})
        assert source.commit({0: 3, 1: 2})
    assert look_at_kafka(settings) == StreamView(lag_records=15, committed_records=5, dead_letters=0)
    ensure_topics(settings, broker)
    fill(settings.model_copy(update={"topic": settings.dlq_topic}), broker, [now_ms] * 3)
    assert look_at_kafka(settings) == StreamView(lag_records=15, committed_records=5, dead_letters=3)


def test_what_the_embedded_broker_takes_along_is_told(kafka_settings: KafkaSettings, broker: str, now_ms: int) -> None:
    ensure_topics(kafka_settings, broker)
    assert unread(kafka_settings, broker) == ""
    fill(kafka_settings, broker, [now_ms] * 3)
    assert unread(kafka_settings, broker).startswith(
        "3 records were not read, and the embedded broker keeps them in memory"
    )
    assert unread(kafka_settings.model_copy(update={"connect_timeout_s": 0.3}), "127.0.0.1:1") == ""
