"""Every row of the table in docs/producers.md: records like that producer's, read with the settings that the row says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.errors import RecordError
from services.settings import KafkaSettings, load_settings
from services.stream.decode import decode
from services.stream.record import Document, RawRecord, Tombstone
from services.stream.shape import RecordShape

PAGE = Path(__file__).parents[2] / "docs" / "producers.md"
ROW = re.compile(r"^\| (?P<producer>[^|]+) \| `(?P<settings>\{[^`]*\})` \|", re.MULTILINE)
ROWS = {row["producer"]: row["settings"] for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))}

EIGHT = datetime(2026, 11, 25, 8, tzinfo=UTC)
MS = int(EIGHT.timestamp()) * 1000
OID = "5f1d7f0c2f8fb814b56fa181"
FIRST = Document("17", "A press was found.", title="Press found", published_at=EIGHT)
ANONYMOUS = Document("17", "A press was found.")
TEXT = ANONYMOUS.text
GONE = Tombstone("17")

Expected = Document | Tombstone
Record = tuple[Any, Any, Expected]
"""Key and value (bytes and None as they are, other things as JSON), and what the record is."""


def connect(payload: Any) -> dict[str, Any]:
    """As JsonConverter writes it with schemas."""
    return {
        "schema": {"type": "struct", "fields": [], "optional": False, "name": "desk.public.story"},
        "payload": payload,
    }


def row(**more: Any) -> dict[str, Any]:
    return {"id": 17, "headline": "Press found", "body": TEXT} | more


def debezium(op: str, before: Any, after: Any) -> dict[str, Any]:
    return {
        "before": before,
        "after": after,
        "op": op,
        "ts_ms": MS,
        "source": {"connector": "postgresql", "name": "desk"},
    }


def mongodb(op: str, **more: Any) -> dict[str, Any]:
    return {"_id": {"_data": "8264"}, "operationType": op, "documentKey": {"_id": {"$oid": OID}}} | more


PUBLISHED = "2026-11-25T08:00:00Z"
SAMPLES: dict[str, Sequence[Record]] = {
    "plain JSON": [
        (b"17", {"guid": 17, "title": "Press found", "body": {"content": TEXT}, "published_at": PUBLISHED}, FIRST),
        (None, {"guid": "17", "body": {"content": TEXT}, "likes": float("nan")}, ANONYMOUS),
        (b"17", None, GONE),
        (b"17", b"", GONE),
    ],
    "key is a tenant, a shard or random": [
        (b"news-desk-7", {"id": "17", "text": TEXT}, ANONYMOUS),
        (b"\x00\x00\x00\x00\x00\x00\x00\xfe", {"id": "17", "text": TEXT}, ANONYMOUS),
        (b"news-desk-7", {"id": "17", "__deleted": True}, GONE),
    ],
    "tenant and id in a plain key": [
        (b"north:17", {"id": 17, "text": TEXT}, Document("17", TEXT, namespace="north")),
        (b"north:17", None, Tombstone("17", "north")),
        (b"north:a:b", None, Tombstone("a:b", "north")),
    ],
    "id in the key alone": [(b"17", {"id": 999, "body": TEXT}, ANONYMOUS), (b"17", b"null", GONE)],
    "JSON key": [
        ({"id": 17}, {"id": 17, "text": TEXT}, ANONYMOUS),
        ({"id": 17}, {"id": "17", "text": TEXT}, ANONYMOUS),
        ({"id": 17}, None, GONE),
    ],
    "quoted key (JsonConverter of a text)": [("17", {"id": "17", "text": TEXT}, ANONYMOUS), ("17", None, GONE)],
    "rows with a mark when they are deleted": [
        (b"17", {"id": 17, "text": TEXT, "deleted_at": None, "status": "live"}, ANONYMOUS),
        (b"17", {"id": 17, "text": TEXT, "deleted_at": MS}, GONE),
        (b"17", {"id": 17, "text": TEXT, "status": "withdrawn"}, GONE),
    ],
    "Kafka Connect JDBC, JsonConverter": [
        (None, row(updated=MS), FIRST),
        ({"id": 17}, row(updated=MS), FIRST),
        ({"id": 17}, None, GONE),
    ],
    "Kafka Connect JDBC, JsonConverter with schemas": [
        (None, connect(row(updated=MS)), FIRST),
        (connect({"id": 17}), connect(row(updated=MS)), FIRST),
        (connect(17), connect(row(updated=MS)), FIRST),
        (connect(17), {"schema": None, "payload": None}, GONE),
        (connect({"id": 17}), None, GONE),
    ],
    "change events, in short": [
        (connect({"id": 17}), connect(debezium("c", None, row())), ANONYMOUS),
        (connect({"id": 17}), connect(debezium("d", {"id": 17, "body": TEXT}, None)), GONE),
        (b"other", connect(debezium("d", {"id": 17}, None)), GONE),
        (connect({"id": 17}), connect(debezium("d", None, None)), GONE),
        (connect({"id": 17}), None, GONE),
        (b"17", None, GONE),
    ],
    "Debezium, JsonConverter with schemas": [
        (connect({"id": 17}), connect(debezium("c", None, row(published_at=PUBLISHED))), FIRST),
        (connect({"id": 17}), connect(debezium("u", {"id": 17}, row(published_at=MS * 1000))), FIRST),
        (connect({"id": 17}), connect(debezium("r", None, row(published_at=PUBLISHED))), FIRST),
        (connect({"id": 17}), connect(debezium("d", {"id": 17, "body": TEXT}, None)), GONE),
        (connect({"id": 17}), connect(debezium("d", None, None)), GONE),
        (connect({"id": 17}), None, GONE),
    ],
    "Debezium, JsonConverter": [
        (
            {"id": 17},
            debezium("c", None, row(published_at=PUBLISHED, desk="local")),
            Document("17", TEXT, "Press found", source="desk", published_at=EIGHT, metadata={"desk": "local"}),
        ),
        ({"id": 17}, debezium("d", {"id": 17}, None), GONE),
        ({"id": 17}, None, GONE),
    ],
    "Debezium, unwrapped": [
        ({"id": 17}, row(published_at=PUBLISHED, __deleted="false"), FIRST),
        ({"id": 17}, row(__deleted="true"), GONE),
        ({"id": 17}, None, GONE),
    ],
    "Debezium for MongoDB": [
        (
            {"id": json.dumps({"$oid": OID})},
            debezium("c", None, json.dumps({"_id": {"$oid": OID}, "body": TEXT, "created": {"$date": MS}})),
            Document(OID, TEXT, source="desk", published_at=EIGHT),
        ),
        ({"id": json.dumps({"$oid": OID})}, debezium("d", None, None), Tombstone(OID)),
        ({"id": json.dumps({"$oid": OID})}, None, Tombstone(OID)),
    ],
    "MongoDB's own connector": [
        (
            {"_id": {"_data": "8264"}},
            mongodb("insert", fullDocument={"_id": {"$oid": OID}, "body": TEXT, "created": {"$date": MS}}),
            Document(OID, TEXT, published_at=EIGHT),
        ),
        (  # through JsonConverter: a text with the JSON in it
            {"_id": {"_data": "8265"}},
            json.dumps(mongodb("replace", fullDocument={"body": TEXT, "created": {"$date": PUBLISHED}})),
            Document(OID, TEXT, published_at=EIGHT),
        ),
        ({"_id": {"_data": "8266"}}, mongodb("delete"), Tombstone(OID)),
    ],
    "Maxwell": [
        (
            {"database": "desk", "table": "story", "pk.id": 17},
            {"database": "desk", "type": "insert", "ts": MS // 1000, "data": row(updated="2026-11-25 08:00:00+0000")},
            Document("17", TEXT, published_at=EIGHT),
        ),
        ({"database": "desk", "table": "story", "pk.id": 17}, {"type": "delete", "data": row()}, GONE),
        ({"database": "desk", "table": "story", "pk.id": 17}, None, GONE),
    ],
    "Confluent JSON Schema": [
        (b'\0\0\0\0\7{"id":17}', b"\0\0\1\x86\xca" + json.dumps({"id": "17", "text": TEXT}).encode(), ANONYMOUS),
        (b'\0\0\0\0\7{"id":17}', None, GONE),
    ],
    "CloudEvents, structured": [
        (
            None,
            {
                "specversion": "1.0",
                "id": "17",
                "source": "/desk",
                "type": "news.example.story.published",
                "time": "2026-11-25T09:00:00+01:00",
                "data": {"headline": "Press found", "body": TEXT},
            },
            Document("17", TEXT, title="Press found", source="/desk", published_at=EIGHT),
        ),
        (None, {"specversion": "1.0", "id": "17", "source": "/desk", "type": "news.example.story.withdrawn"}, GONE),
    ],
    "Logstash": [
        (
            None,
            {
                "@timestamp": "2026-11-25T08:00:00.000Z",
                "@version": "1",
                "message": TEXT,
                "fingerprint": "17",
                "host": {"name": "wire"},
                "tags": ["news"],
            },
            Document("17", TEXT, source="wire", published_at=EIGHT),
        )
    ],
    "Fluent Bit": [
        (None, {"@timestamp": MS / 1000, "log": TEXT, "id": 17}, Document("17", TEXT, published_at=EIGHT)),
        (None, {"@timestamp": "2026-11-25T08:00:00Z", "log": TEXT, "id": 17}, Document("17", TEXT, published_at=EIGHT)),
    ],
    "Vector": [
        (
            None,
            {"message": TEXT, "timestamp": "2026-11-25T08:00:00.000000000Z", "source_type": "file", "id": "17"},
            Document("17", TEXT, source="file", published_at=EIGHT),
        )
    ],
    "days since 1970 (Debezium's DATE)": [
        (
            b"17",
            {"id": 17, "text": TEXT, "published_at": 20_782},
            Document("17", TEXT, published_at=EIGHT.replace(hour=0)),
        )
    ],
}


FOREIGN_KEYS = {"key is a tenant, a shard or random", "MongoDB's own connector"}
"""Those whose keys never name a document."""


def as_bytes(content: Any) -> bytes | None:
    return content if isinstance(content, bytes | None) else json.dumps(content).encode()


def test_every_row_of_the_table_has_records_here() -> None:
    assert set(ROWS) == set(SAMPLES)


@pytest.mark.parametrize("producer", ROWS)
def test_records_are_read_with_the_settings_of_their_row(producer: str) -> None:
    shape = RecordShape.of(KafkaSettings(**yaml.safe_load(ROWS[producer])))
    left_out: list[str] = []
    for key, value, expected in SAMPLES[producer]:
        record = RawRecord("t", 0, 0, 0, as_bytes(key), as_bytes(value))
        assert decode(record, shape, left_out.append) == expected
    assert set(left_out) == ({"key"} if producer in FOREIGN_KEYS else set())


@pytest.mark.parametrize(
    ("producer", "value"),
    [
        ("Debezium, JsonConverter with schemas", connect(debezium("t", None, None))),  # a truncated table
        ("Debezium, JsonConverter", debezium("m", None, None)),  # a logical decoding message
        ("MongoDB's own connector", mongodb("drop")),
        ("Kafka Connect JDBC, JsonConverter", connect(row())),  # schemas.enable is not what the settings say
    ],
)
def test_events_without_a_document_are_dead_letters(producer: str, value: Any) -> None:
    shape = RecordShape.of(KafkaSettings(**yaml.safe_load(ROWS[producer])))
    with pytest.raises(RecordError):
        decode(RawRecord("t", 0, 0, 0, None, as_bytes(value)), shape)


def test_settings_of_the_table_can_be_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = yaml.safe_load(ROWS["Debezium, JsonConverter with schemas"])
    for name, content in wanted.items():
        monkeypatch.setenv(f"CMT_KAFKA__{name.upper()}", json.dumps(content))
    assert RecordShape.of(load_settings().kafka) == RecordShape.of(KafkaSettings(**wanted))
