"""`cmt dlq` against a real broker: letters come once, are shown as they are, and are sent again with their place kept."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner, Result

from services.commands.tree import app
from services.errors import RecordError, ServiceError, SettingsError, TopicMissing
from services.settings import KafkaSettings
from services.stream.dead_letter_reader import DeadLetter, read_letters
from services.stream.dead_letters import DeadLetters
from services.stream.reading import read_topic
from services.stream.record import RawRecord, original_place
from services.stream.replay import replay

EPOCH = 1_700_000_000_000


def bad(
    offset: int, key: bytes | None, value: bytes | None, reason: str = "not_json"
) -> tuple[RawRecord, RecordError, int]:
    record = RawRecord("documents", 1, offset, 1_650_000_000_000 + offset, key, value, (("origin", b"wire"),))
    return record, RecordError(reason, f"record {offset} can't be read"), EPOCH


LETTERS = [
    bad(3, b"a", b"{not json"),
    bad(5, b"b", b"\xff\xfe", "not_utf8"),
    bad(9, b"c", None, "schema"),
    bad(3, b"a", b"{not json"),  # after a crash between the letter and the commit of its offset
]


@pytest.fixture
def letters(kafka_settings: KafkaSettings, broker: str) -> KafkaSettings:
    with DeadLetters(kafka_settings, broker) as sink:
        assert sink.send_all(LETTERS) == [None] * len(LETTERS)
    return kafka_settings


def run(settings: KafkaSettings, broker: str, *arguments: str) -> Result:
    flags = ["--topic", settings.topic, "--bootstrap-servers", broker]
    group = {"CMT_KAFKA__GROUP_ID": settings.group_id}
    return CliRunner().invoke(app, ["dlq", *arguments, *flags], env=group)


def test_every_letter_is_read_once_with_its_origin(letters: KafkaSettings, broker: str) -> None:
    found = {letter.offset: letter for letter in read_letters(letters, broker)}
    assert sorted(found) == [3, 5, 9]
    first = found[3]
    assert (first.key, first.value, first.headers) == (b"a", b"{not json", (("origin", b"wire"),))
    assert (first.topic, first.partition, first.epoch, first.reason) == ("documents", 1, EPOCH, "not_json")
    assert first.timestamp_ms == 1_650_000_000_003
    assert found[9].value is None


def test_list_prints_one_line_a_letter_and_filters_by_reason(letters: KafkaSettings, broker: str) -> None:
    result = run(letters, broker, "list")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 3
    assert "documents[1]@5" in result.stdout
    only = run(letters, broker, "list", "--reason", "not_utf8", "--json")
    facts = [json.loads(line) for line in only.stdout.splitlines()]
    assert [(one["offset"], one["reason"]) for one in facts] == [(5, "not_utf8")]


def test_show_gives_the_bytes_untouched(letters: KafkaSettings, broker: str) -> None:
    place = next(letter.place for letter in read_letters(letters, broker) if letter.offset == 5)
    assert run(letters, broker, "show", place, "--raw").stdout_bytes == b"\xff\xfe"
    shown = json.loads(run(letters, broker, "show", place).stdout)
    assert shown["value"]["base64"] == "//4="
    assert isinstance(run(letters, broker, "show", "0:999").exception, RecordError)


def test_replay_sends_the_records_as_they_were_and_all_of_them_only_once(letters: KafkaSettings, broker: str) -> None:
    assert run(letters, broker, "replay", "--all").stdout.startswith("sent 3 again")
    sent = list(read_topic(letters, broker, letters.topic))
    assert {(one.key, one.value, one.timestamp_ms) for one in sent} == {
        (record.key, record.value, record.timestamp_ms) for record, _, _ in LETTERS
    }
    assert {original_place(one) for one in sent} == {(EPOCH, 1, 3), (EPOCH, 1, 5), (EPOCH, 1, 9)}
    assert {name for one in sent for name, _ in one.headers} == {"origin", "cmt-place"}
    again = run(letters, broker, "replay", "--all").stdout
    assert again.startswith("sent 0 again")
    assert "3 had been sent before" in again


def test_a_replay_that_fails_again_keeps_its_first_place(letters: KafkaSettings, broker: str) -> None:
    assert replay(letters, broker, lambda letter: letter.offset == 3).sent == 1
    (sent,) = read_topic(letters, broker, letters.topic)
    with DeadLetters(letters, broker) as sink:
        sink.send_all([(sent, RecordError("not_json", "still"), EPOCH)])

    def still(letter: DeadLetter) -> bool:
        return letter.error == "still"

    assert replay(letters, broker, still).sent == 1
    first = (sent.partition, sent.offset)
    twice = [one for one in read_topic(letters, broker, letters.topic) if (one.partition, one.offset) != first]
    assert [original_place(one) for one in twice] == [(EPOCH, 1, 3)]


def test_replay_of_chosen_letters(letters: KafkaSettings, broker: str) -> None:
    assert run(letters, broker, "replay", "--reason", "schema").stdout.startswith("sent 1 again")
    place = next(letter.place for letter in read_letters(letters, broker) if letter.offset == 3)
    assert run(letters, broker, "replay", place).stdout.startswith("sent 1 again")
    assert isinstance(run(letters, broker, "replay", "7:7").exception, RecordError)


def test_replay_asks_what_is_meant(letters: KafkaSettings, broker: str) -> None:
    for arguments in ((), ("--all", "--reason", "schema"), ("0:1", "--all")):
        failure = run(letters, broker, "replay", *arguments).exception
        assert isinstance(failure, SettingsError)
        assert "choose the letters" in str(failure)


def test_a_topic_that_is_missing_is_one_line(broker: str) -> None:
    failure = CliRunner().invoke(app, ["dlq", "list", "--topic", f"none-{os.getpid()}", "--bootstrap-servers", broker])
    assert isinstance(failure.exception, TopicMissing)
    assert isinstance(failure.exception, ServiceError)
