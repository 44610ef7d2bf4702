"""Every rule of the document record, and that no bytes make `decode` raise anything but RecordError."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from services.errors import RecordError, SettingsError
from services.stream import record as record_module
from services.stream.record import Document, RawRecord, Tombstone, check_field_map, decode

MAX_BYTES = 10_000


def raw(
    value: bytes | dict[str, Any] | None, key: bytes | None = None, headers: tuple[tuple[str, bytes], ...] = ()
) -> RawRecord:
    data = json.dumps(value).encode() if isinstance(value, dict) else value
    return RawRecord("documents", 0, 7, 1_700_000_000_000, key, data, headers)


def read(value: bytes | dict[str, Any], key: bytes | None = None, **field_map: str) -> Document:
    document = decode(raw(value, key), field_map, MAX_BYTES)
    assert isinstance(document, Document)
    return document


def reason(record: RawRecord, max_bytes: int = MAX_BYTES, **field_map: str) -> str:
    with pytest.raises(RecordError) as caught:
        decode(record, field_map, max_bytes)
    assert "\n" not in str(caught.value)
    assert 0 < len(str(caught.value)) < 600
    return caught.value.reason


def test_smallest_document_gets_the_defaults() -> None:
    assert read({"id": "1", "text": "Rain."}) == Document("1", "Rain.")


def test_all_fields_are_read() -> None:
    document = read(
        {
            "id": "1",
            "text": "Rain.",
            "title": "Weather",
            "url": "https://example.org/1",
            "source": "The Daily",
            "published_at": "2024-05-01T12:00:00.25+02:00",
            "lang": "en-GB",
            "namespace": "city.news",
            "expires_at": "2030-01-01T00:00:00Z",
            "metadata": {"section": "local"},
        },
        b"1",
    )
    assert document.published_at == datetime(2024, 5, 1, 10, 0, 0, 250_000, UTC)
    assert document.published_at.tzinfo is UTC
    assert document.expires_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert (document.title, document.url, document.source) == ("Weather", "https://example.org/1", "The Daily")
    assert (document.lang, document.namespace, document.metadata) == ("en-GB", "city.news", {"section": "local"})


def test_null_fields_count_as_absent_and_unknown_fields_are_ignored() -> None:
    value = dict.fromkeys(("title", "url", "source", "published_at", "lang", "namespace", "expires_at"))
    assert read({"id": "1", "text": "Rain.", "metadata": None, "later": {"x": 1}, **value}) == Document("1", "Rain.")


def test_null_value_with_a_key_deletes() -> None:
    assert decode(raw(None, b"1"), {}, MAX_BYTES) == Tombstone("1", "default")


def test_tombstone_takes_its_namespace_from_the_last_header() -> None:
    headers = (("namespace", b"old"), ("trace", b"\xff"), ("namespace", b"city"))
    assert decode(raw(None, "né".encode(), headers), {}, MAX_BYTES) == Tombstone("né", "city")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (raw(None, None), "no_key"),
        (raw(None, b""), "no_key"),
        (raw(None, b"\xff"), "not_utf8"),
        (raw(None, b"1", (("namespace", b"\xff"),)), "not_utf8"),
        (raw(None, b"1", (("namespace", b"a b"),)), "schema"),
        (raw(None, b"k" * 2000), "schema"),
    ],
)
def test_tombstone_that_names_no_document_is_refused(record: RawRecord, expected: str) -> None:
    assert reason(record) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"id": "1", "text": "Rain."} x', "not_json"),
        (b'{"id": "1", "text": "Rain.", "score": NaN}', "not_json"),
        (b'{"id": "1", "text": "Rain.", "score": -Infinity}', "not_json"),
        (b'{"id": "1", "text": "Rain.", "id": "2"}', "not_json"),
        (b'{"id": "1", "text": "Rain.", "n": ' + b"9" * 5000 + b"}", "not_json"),
        (b"[" * 9000, "not_json"),
        (b'{"a":' * 1900, "not_json"),
        (b"\xff\xfe", "not_utf8"),
        ('{"id": "1", "text": "Rain."}'.encode("utf-16"), "not_utf8"),
        (b'{"id": "1", "text": "\\ud800"}', "not_utf8"),
        (b'{"id": "1", "text": "Rain.", "metadata": {"\\udc00": "x"}}', "not_utf8"),
        (b"[]", "schema"),
        (b"null", "schema"),
        (b'"text"', "schema"),
        (b"{}", "schema"),
        ({"text": "Rain."}, "schema"),
        ({"id": "1"}, "schema"),
        ({"id": "", "text": "Rain."}, "schema"),
        ({"id": None, "text": "Rain."}, "schema"),
        ({"id": 1, "text": "Rain."}, "schema"),
        ({"id": "i" * 1025, "text": "Rain."}, "schema"),
        ({"id": "1", "text": ""}, "schema"),
        ({"id": "1", "text": " \n\t\u00a0"}, "schema"),
        ({"id": "1", "text": ["Rain."]}, "schema"),
        ({"id": "1", "text": "Rain.", "title": 3}, "schema"),
        ({"id": "1", "text": "Rain.", "lang": "en\u00fc"}, "schema"),
        ({"id": "1", "text": "Rain.", "namespace": ""}, "schema"),
        ({"id": "1", "text": "Rain.", "namespace": "default\n"}, "schema"),
        ({"id": "1", "text": "Rain.", "namespace": "../up"}, "schema"),
        ({"id": "1", "text": "Rain.", "metadata": {"n": 1}}, "schema"),
        ({"id": "1", "text": "Rain.", "metadata": "x"}, "schema"),
        ({"id": "1", "text": "Rain.", "published_at": 1_700_000_000}, "schema"),
        ({"id": "1", "text": "Rain.", "published_at": "2024-05-01"}, "bad_time"),
        ({"id": "1", "text": "Rain.", "published_at": "2024-05-01T12:00:00"}, "bad_time"),
        ({"id": "1", "text": "Rain.", "published_at": "2024-13-01T12:00:00Z"}, "bad_time"),
        ({"id": "1", "text": "Rain.", "published_at": "0001-01-01T00:00:00+10:00"}, "bad_time"),
        ({"id": "1", "text": "Rain.", "expires_at": "tomorrow"}, "bad_time"),
        ({"id": "1", "text": "Rain.", "expires_at": ""}, "bad_time"),
    ],
)
def test_value_that_is_no_document_is_refused(value: bytes | dict[str, Any], expected: str) -> None:
    assert reason(raw(value)) == expected


def test_value_above_the_limit_is_refused_and_at_the_limit_read() -> None:
    record = raw({"id": "1", "text": "Rain."})
    assert record.value is not None
    assert decode(record, {}, len(record.value)) == Document("1", "Rain.")
    assert reason(record, len(record.value) - 1) == "too_large"


@pytest.mark.parametrize("key", [b"2", b"", b"1 ", b"\xff"])
def test_key_that_differs_from_the_id_is_refused(key: bytes) -> None:
    assert reason(raw({"id": "1", "text": "Rain."}, key)) == "key_mismatch"


def test_document_without_a_key_is_read() -> None:
    assert read({"id": "1", "text": "Rain."}, None).id == "1"


def test_error_of_a_huge_field_stays_short() -> None:
    assert reason(raw({"id": ["x" * 9000], "text": "Rain."})) == "schema"


def test_field_map_reads_other_shapes() -> None:
    value = {"guid": 42, "body": {"content": "Rain.", "lang": "en"}, "title": "Weather", "id": "other", "when": None}
    document = read(value, b"42", id="guid", text="body.content", lang="body.lang", published_at="when")
    assert document == Document("42", "Rain.", title="Weather", lang="en")


@pytest.mark.parametrize("path", ["body.missing", "body.content.deeper", "missing.content", "flag"])
def test_mapped_path_that_is_absent_is_an_error(path: str) -> None:
    assert reason(raw({"id": "1", "body": {"content": "Rain."}, "flag": True}), text=path) == "schema"


@pytest.mark.parametrize("field_map", [{"titel": "a"}, {"title": ""}, {"title": "a..b"}])
def test_field_map_with_unknown_field_or_broken_path_is_refused(field_map: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(field_map))):
        check_field_map(field_map)


def test_good_field_map_is_accepted() -> None:
    check_field_map({"id": "guid", "text": "body.content", "metadata": "tags"})


def test_schema_is_itself_valid_and_names_every_field_of_the_document() -> None:
    schema = record_module._SCHEMA
    Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == set(Document.__dataclass_fields__)


def test_naive_times_are_refused_and_others_become_utc() -> None:
    with pytest.raises(ValueError, match="published_at has no time zone"):
        Document("1", "Rain.", published_at=datetime(2024, 5, 1))
    east = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert Document("1", "Rain.", expires_at=east).to_json() == (
        b'{"id":"1","text":"Rain.","namespace":"default","expires_at":"2024-05-01T10:00:00Z"}'
    )


def test_records_and_errors_travel_between_processes() -> None:
    record = raw({"id": "1", "text": "Rain."}, b"1", (("a", b"b"),))
    assert pickle.loads(pickle.dumps(record)) == record
    document = Document("1", "Rain.", metadata={"a": "b"})
    assert pickle.loads(pickle.dumps(document)) == document
    assert len({document, document}) == 1
    error = pickle.loads(pickle.dumps(RecordError("schema", "text: blank")))
    assert (error.reason, str(error)) == ("schema", "text: blank")


texts = st.text(st.characters(exclude_categories=["Cs"]))
solid_texts = texts.map(lambda text: f"a{text}")
times = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))
documents = st.builds(
    Document,
    id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50),
    text=solid_texts,
    title=texts,
    url=texts,
    source=texts,
    published_at=times,
    lang=st.from_regex(r"[a-z]{2}(-[A-Z]{2})?", fullmatch=True) | st.just(""),
    namespace=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    expires_at=times,
    metadata=st.dictionaries(texts, texts, max_size=5),
)


@given(documents)
def test_document_is_read_back_as_written(document: Document) -> None:
    record = RawRecord("documents", 0, 0, 0, document.id.encode(), document.to_json())
    assert decode(record, {}, 10**6) == document


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("2024-05-01T00:00:00Z"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*Document.__dataclass_fields__, "x"]), inner)
    ),
    max_leaves=12,
)
values = (
    st.none()
    | st.binary()
    | st.text().map(lambda text: text.encode(errors="surrogatepass"))
    | json_values.map(lambda value: json.dumps(value).encode())
)


@given(
    key=st.none() | st.binary(max_size=8),
    value=values,
    headers=st.lists(st.tuples(st.sampled_from(["namespace", "x"]), st.binary(max_size=8)), max_size=3).map(tuple),
    field_map=st.dictionaries(
        st.sampled_from(["id", "text", "metadata"]), st.sampled_from(["x", "x.x", "text.id", ""])
    ),
    max_bytes=st.sampled_from([0, 10, 10_000]),
)
@example(None, b'{"id": ' + b"[" * 980 + b"]" * 980 + b', "text": "a"}', (), {}, 10_000)
@example(None, b'{"x": ' + b'{"x":' * 900 + b"1" + b"}" * 900 + b"}", (), {"id": "x.x.x"}, 10_000)
def test_no_bytes_raise_anything_but_a_record_error(
    key: bytes | None,
    value: bytes | None,
    headers: tuple[tuple[str, bytes], ...],
    field_map: dict[str, str],
    max_bytes: int,
) -> None:
    try:
        decoded = decode(RawRecord("t", 0, 0, 0, key, value, headers), field_map, max_bytes)
    except RecordError as error:
        outcome = error.reason
        one_line = "\n" not in str(error)
    else:
        outcome = "read" if decoded.id and decoded.namespace else "incomplete"
        one_line = True
    assert one_line
    assert outcome in {
        "read",
        "no_key",
        "too_large",
        "not_utf8",
        "not_json",
        "schema",
        "bad_time",
        "key_mismatch",
    }


@given(
    st.dictionaries(
        st.sampled_from(["id", "text", "title", "url", "lang", "namespace", "metadata", "seq", "published_at"]),
        st.one_of(
            st.text(max_size=70),
            st.sampled_from(["default", "en-GB", "a\n", " \t", "x" * 36, "x" * 65, "ns.a_b-c", "Ü", "²"]),
            st.integers(-2, 2**64),
            st.booleans(),
            st.floats(allow_nan=False),
            st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.integers()), max_size=3),
            st.lists(st.text(max_size=3), max_size=2),
        ),
    )
)
def test_shortcut_of_the_schema_never_lets_through_what_the_schema_refuses(value: dict[str, Any]) -> None:
    if record_module._plainly_valid(value):
        assert record_module._VALIDATOR.is_valid(value)


@pytest.mark.parametrize(("seq", "expected"), [(7, 7), (3.0, 3), (None, 0), (2**63 - 1, 2**63 - 1)])
def test_producers_own_number_is_read(seq: float | None, expected: int) -> None:
    number = decode(raw({"id": "a", "text": "x", "seq": seq}), {}, MAX_BYTES).seq
    assert number == expected
    assert type(number) is int


def test_deletion_takes_its_number_from_the_header() -> None:
    assert decode(raw(None, b"a", (("seq", b"12"),)), {}, MAX_BYTES) == Tombstone("a", seq=12)
    for no_number in (b"-1", b"9" * 19, b"x"):
        assert reason(raw(None, b"a", (("seq", no_number),))) == "schema"


def test_mapped_number_of_a_version_stays_a_number() -> None:
    assert read({"id": "a", "text": "x", "version": {"n": 4}}, seq="version.n").seq == 4
