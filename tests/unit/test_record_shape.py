"""Other producers' shapes: where the id stands, what deletes, how paths lead, and which settings are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from services.errors import RecordError, SettingsError
from services.settings import KafkaSettings
from services.stream.decode import decode
from services.stream.json_tree import ABSENT, JsonTree
from services.stream.record import Document, RawRecord, Tombstone
from services.stream.shape import RecordShape


def read(
    value: Any, key: bytes | None = None, headers: tuple[tuple[str, bytes], ...] = (), **settings: Any
) -> tuple[Document | Tombstone, list[str]]:
    """What a record is under settings, and what was left out of it."""
    left_out: list[str] = []
    data = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    shape = RecordShape.of(KafkaSettings(**settings))
    return decode(RawRecord("t", 0, 0, 0, key, data, headers), shape, left_out.append), left_out


def reason(value: Any, key: bytes | None = None, **settings: Any) -> str:
    with pytest.raises(RecordError) as caught:
        read(value, key, **settings)
    return caught.value.reason


RAIN = {"id": "1", "text": "Rain."}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", {"b": {"c": 1}, "b.c": 2}),
        ("a.b.c", 2),  # a name with a dot in it
        ("a.b", {"c": 1}),
        ("list.0", "x"),
        ("list.1.y", 3),
        ("list.2", ABSENT),
        ("list.-1", ABSENT),
        ("list.\u00b2", ABSENT),
        ("list.x", ABSENT),
        ("text.y.z", 4),  # JSON in a text
        ("text", '{"y": {"z": 4}}'),
        ("null", None),
        ("null.x", ABSENT),
        ("flat.ter.name", 5),
        ("flat.ter.other", 6),
        ("@timestamp", 7),
        ("_id.$oid", "5f"),
        ("number.x", ABSENT),
        ("plain.x", ABSENT),
        ("none", ABSENT),
    ],
)
def test_a_path_leads_through_objects_lists_and_texts(path: str, expected: Any) -> None:
    tree = JsonTree(
        {
            "a": {"b": {"c": 1}, "b.c": 2},
            "list": ["x", {"y": 3}],
            "text": '{"y": {"z": 4}}',
            "null": None,
            "flat.ter.name": 5,
            "flat.ter": {"other": 6},
            "@timestamp": 7,
            "_id": {"$oid": "5f"},
            "number": 8,
            "plain": "not JSON",
        }
    )
    assert tree.at(path) == expected
    assert tree.at("$") is tree.root


def test_the_first_path_that_is_there_and_not_null_counts() -> None:
    settings = {"field_map": {"id": ["after.id", "before.id"], "text": ["after.body", "note"]}}
    assert read({"after": {"id": 1, "body": "Rain."}, "before": {"id": 2}}, **settings)[0] == Document("1", "Rain.")
    assert read({"after": None, "before": {"id": 2}, "note": "x"}, **settings)[0] == Document("2", "x")
    assert reason({"after": {"id": 1}}, **settings) == "schema"


def test_field_map_reads_other_shapes() -> None:
    value = {"guid": 42, "body": {"content": "Rain.", "lang": "en"}, "title": "Weather", "id": "other", "when": None}
    settings = {"field_map": {"id": "guid", "text": "body.content", "lang": "body.lang", "published_at": "when"}}
    assert read(value, b"42", **settings) == (Document("42", "Rain.", title="Weather", lang="en"), [])


@pytest.mark.parametrize("path", ["body.missing", "body.content.deeper", "missing.content", "flag"])
def test_text_that_is_not_where_the_map_says_is_a_dead_letter(path: str) -> None:
    assert reason({"id": "1", "body": {"content": "Rain."}, "flag": True}, field_map={"text": path}) == "schema"


def test_mapped_number_of_a_version_stays_a_number() -> None:
    document, _ = read({"id": "a", "text": "x", "version": {"n": 4}}, field_map={"seq": "version.n"})
    assert document.seq == 4


def test_metadata_is_gathered_from_where_it_stands() -> None:
    value = RAIN | {"desk": "local", "tags": ["a", "b"], "metadata": {"kept": 1}, "none": None}
    document, _ = read(value, field_map={"metadata.desk": "desk", "metadata.tags": "tags", "metadata.none": "none"})
    assert document == Document("1", "Rain.", metadata={"kept": 1, "desk": "local", "tags": ["a", "b"]})


def test_a_value_that_is_a_text_with_json_in_it_is_read() -> None:
    assert read(json.dumps(json.dumps(RAIN)).encode())[0] == Document("1", "Rain.")
    assert reason(b'"no JSON"') == reason(b'"[1]"') == "schema"


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        (b"41", {}),
        (b'{"id":41}', {"key_map": {"id": "id"}}),
        (b'{"id":"41"}', {"key_map": {"id": "id"}}),
        (b'{"schema":{"type":"struct"},"payload":{"id":41}}', {"key_map": {"id": "payload.id"}}),
        (b'{"schema":{"type":"int32"},"payload":41}', {"key_map": {"id": ["payload.id", "payload"]}}),
        (b'"41"', {"key_map": {"id": "$"}}),
        (b"41", {"key_map": {"id": "$"}}),
        (b'\0\0\0\0\7{"id":41}', {"key_map": {"id": "id"}}),
        (b'{"id":"{\\"$oid\\":\\"41\\"}"}', {"key_map": {"id": "id.$oid"}}),
        (b'{"database":"d","pk.id":41}', {"key_map": {"id": "pk.id"}}),
        (b"news-desk/41", {"key_pattern": "[^/]*/(?P<id>.+)"}),
        (b'"41"', {"key_pattern": '"(?P<id>.*)"'}),
    ],
)
def test_a_key_names_the_document_in_the_shape_that_is_set(key: bytes, settings: dict[str, Any]) -> None:
    assert read(None, key, **settings)[0] == Tombstone("41")
    assert read({"id": 41, "text": "Rain."}, key, **settings) == (Document("41", "Rain."), [])
    assert read({"text": "Rain."}, key, id_from="key", **settings) == (Document("41", "Rain."), [])
    assert read({"id": "other", "text": "Rain."}, key, id_from="key", **settings)[0] == Document("41", "Rain.")
    assert read({"id": "other", "text": "Rain."}, key, **settings) == (Document("other", "Rain."), ["key"])


@pytest.mark.parametrize(
    ("key", "settings", "expected"),
    [
        (None, {}, "no_key"),
        (b"", {}, "no_key"),
        (b"\xff", {}, "not_utf8"),
        (b"41", {"key_map": {"id": "id"}}, "no_key"),
        (b'{"id":null}', {"key_map": {"id": "id"}}, "no_key"),
        (b'{"id":""}', {"key_map": {"id": "id"}}, "no_key"),
        (b'{"id":[1]}', {"key_map": {"id": "id"}}, "no_key"),
        (b'{"id":true}', {"key_map": {"id": "id"}}, "no_key"),
        (b"null", {"key_map": {"id": "$"}}, "no_key"),
        (b"no json", {"key_map": {"id": "id"}}, "not_json"),
        (b"\0\0\0\0\7\x02a", {"key_map": {"id": "id"}}, "schema_registry"),
        (b"no separator", {"key_pattern": "[^/]*/(?P<id>.+)"}, "no_key"),
        (b"desk/", {"key_pattern": "[^/]*/(?P<id>.*)"}, "no_key"),
    ],
)
def test_a_key_that_names_no_document_costs_a_deletion_but_no_document(
    key: bytes | None, settings: dict[str, Any], expected: str
) -> None:
    assert reason(None, key, **settings) == expected
    assert reason({"text": "Rain."}, key, id_from="key", **settings) == expected
    assert read(RAIN, key, **settings) == (Document("1", "Rain."), [] if key is None else ["key"])


def test_a_tenant_in_the_key_is_the_namespace_of_documents_and_deletions() -> None:
    for key, settings in (
        (b"city:1", {"key_pattern": "(?P<namespace>[^:]+):(?P<id>.+)"}),
        (b'{"tenant":"city","id":1}', {"key_map": {"id": "id", "namespace": "tenant"}}),
    ):
        assert read(RAIN, key, **settings) == (Document("1", "Rain.", namespace="city"), [])
        assert read(None, key, **settings)[0] == Tombstone("1", "city")
        assert read(RAIN | {"namespace": "own"}, key, **settings)[0].namespace == "own"
        assert read(None, key, (("namespace", b"header"),), **settings)[0].namespace == "header"
        assert read(RAIN | {"__deleted": "true"}, key, **settings)[0] == Tombstone("1", "city")


@pytest.mark.parametrize(
    ("deleted_if", "value"),
    [
        ({"op": "d"}, {"op": "d"}),
        ({"payload.op": "d"}, {"payload": {"op": "d"}}),
        ({"op": ["d", "t"]}, {"op": "t"}),
        ({"a": "x", "b": "y"}, {"a": "z", "b": "y"}),
        ({"gone": True}, {"gone": True}),
        ({"gone": True}, {"gone": "true"}),
        ({"gone": 1}, {"gone": 1}),
        ({"gone": 1}, {"gone": "1"}),
        ({"payload": None}, {"payload": None}),
        ({"deleted_at": "*"}, {"deleted_at": "2026-11-25"}),
        ({"deleted_at": "*"}, {"deleted_at": {"$date": 5}}),
        ({"deleted_at": "*"}, {"deleted_at": 0}),
    ],
)
def test_value_deletes_where_the_settings_say_so(deleted_if: dict[str, Any], value: dict[str, Any]) -> None:
    assert read(value | {"id": 1}, deleted_if=deleted_if)[0] == Tombstone("1")
    assert read(value, b"1", deleted_if=deleted_if)[0] == Tombstone("1")
    assert read(value | {"id": "other"}, b"1", deleted_if=deleted_if, id_from="key")[0] == Tombstone("1")
    assert reason(value, deleted_if=deleted_if) == "no_key"


@pytest.mark.parametrize(
    ("deleted_if", "value"),
    [
        ({"op": "d"}, {"op": "u"}),
        ({"op": "d"}, {"op": None}),
        ({"op": "d"}, {}),
        ({"op": "d"}, {"op": ["d"]}),
        ({"gone": True}, {"gone": False}),
        ({"gone": True}, {"gone": 1}),
        ({"payload": None}, {}),
        ({"deleted_at": "*"}, {"deleted_at": None}),
        ({"deleted_at": "*"}, {"deleted_at": False}),
    ],
)
def test_value_that_says_something_else_is_a_document(deleted_if: dict[str, Any], value: dict[str, Any]) -> None:
    assert read(RAIN | value, deleted_if=deleted_if)[0] == Document("1", "Rain.")


def test_deletion_in_a_value_has_its_own_namespace_and_number_before_those_of_headers() -> None:
    headers = (("namespace", b"header"), ("seq", b"7"))
    value = {"id": "1", "__deleted": True}
    assert read(value, None, headers)[0] == Tombstone("1", "header", 7)
    assert read(value | {"namespace": "own", "seq": 9}, None, headers)[0] == Tombstone("1", "own", 9)
    assert reason(value | {"namespace": "../up"}) == "schema"


def test_unwrapped_debezium_deletes_without_a_setting() -> None:
    assert read(RAIN | {"__deleted": "true"})[0] == Tombstone("1")
    assert read(RAIN | {"__deleted": "false"})[0] == Document("1", "Rain.")
    assert read(RAIN | {"__deleted": "true"}, deleted_if={"op": "d"})[0] == Tombstone("1")


def test_unit_of_times_can_be_set() -> None:
    document, left_out = read(RAIN | {"published_at": 20_782}, epoch_unit="d")
    assert document == Document("1", "Rain.", published_at=datetime(2026, 11, 25, tzinfo=UTC))
    assert left_out == []
    assert read(RAIN | {"published_at": 20_782}) == (Document("1", "Rain."), ["published_at"])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"field_map": {"titel": "a"}}, "titel"),
        ({"field_map": {"title": ""}}, "title"),
        ({"field_map": {"title": "a..b"}}, "title"),
        ({"field_map": {"title": []}}, "title"),
        ({"field_map": {"title": ["a", ".b"]}}, "title"),
        ({"key_map": {"title": "a"}}, "title"),
        ({"key_map": {"namespace": "a"}}, "id is missing"),
        ({"key_map": {"metadata.a": "a"}}, "metadata.a"),
        ({"deleted_if": {"a.": "d"}}, "deleted_if"),
        ({"key_pattern": "("}, "not a regular expression"),
        ({"key_pattern": "a(.*)"}, r"\(\?P<id>"),
        ({"key_pattern": "(?P<id>.*)(?P<text>.*)"}, "no other name"),
        ({"key_pattern": "(?P<id>.*)", "key_map": {"id": "id"}}, "set one"),
    ],
)
def test_settings_that_describe_no_shape_are_refused_in_one_line(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as caught:
        RecordShape.of(KafkaSettings(**settings))
    assert "\n" not in str(caught.value)
    assert "kafka." in str(caught.value)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("after.id", {"id": 17}, {"op": "d", "before": {"id": 17}, "after": None}),
        (
            "payload.after.story_no",
            {"payload": {"story_no": 17}},
            {"payload": {"op": "d", "before": {"story_no": "17"}}},
        ),
        ("message.payload.after.key.no", {}, {"message": {"payload": {"op": "d", "before": {"key": {"no": 17}}}}}),
    ],
)
def test_path_through_after_says_what_deletes(path: str, key: Any, value: Any) -> None:
    settings: dict[str, Any] = {"field_map": {"id": path, "text": "after.body"}}
    assert read(value, json.dumps(key).encode(), **settings)[0] == Tombstone("17")
    if key:
        assert read(None, json.dumps(key).encode(), **settings)[0] == Tombstone("17")


def test_what_is_said_counts_before_what_follows_from_after() -> None:
    event = {"op": "d", "before": {"id": 1}, "after": {"id": 2, "text": "Rain."}}
    fields = {"id": "after.id", "text": "after.text"}
    assert read(event, field_map=fields, deleted_if={"op": "x"})[0] == Document("2", "Rain.")
    assert read(None, b'{"id": 1, "no": 3}', field_map=fields, key_map={"id": "no"})[0] == Tombstone("3")
    assert read(None, b"a:4", field_map=fields, key_pattern="a:(?P<id>.+)")[0] == Tombstone("4")
    assert read(None, b'{"id": 1}', field_map=fields, id_from="key")[0] == Tombstone('{"id": 1}')


def test_key_without_the_id_of_a_change_event_deletes_nothing() -> None:
    assert reason(None, b'{"other": 1}', field_map={"id": "after.id"}) == "no_key"
    assert reason(None, b"{not json", field_map={"id": "after.id"}) == "not_json"


def test_maps_without_after_leave_keys_and_op_alone() -> None:
    fields = {"id": "guid", "text": "after"}
    assert read({"guid": "1", "after": "Rain.", "op": "d"}, field_map=fields)[0] == Document("1", "Rain.")
    assert read(None, b'{"id": 1}', field_map=fields)[0] == Tombstone('{"id": 1}')
