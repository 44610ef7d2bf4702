"""What `decode` reads and refuses in the document record's own shape, and that no bytes make it raise anything else."""

from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from services.errors import RecordError
from services.stream import decode as decode_module
from services.stream.decode import decode
from services.stream.record import SCHEMA, Document, RawRecord, Tombstone
from services.stream.shape import RecordShape

SHAPE = RecordShape(max_bytes=10_000)


def raw(
    value: bytes | dict[str, Any] | None, key: bytes | None = None, headers: tuple[tuple[str, bytes], ...] = ()
) -> RawRecord:
    data = json.dumps(value).encode() if isinstance(value, dict) else value
    return RawRecord("documents", 0, 7, 1_700_000_000_000, key, data, headers)


def read(value: bytes | dict[str, Any], key: bytes | None = None) -> Document:
    document, left_out = read_part(value, key)
    assert left_out == []
    return document


def read_part(value: bytes | dict[str, Any], key: bytes | None = None) -> tuple[Document, list[str]]:
    """A document, and the fields that were left out of it."""
    left_out: list[str] = []
    document = decode(raw(value, key), SHAPE, left_out.append)
    assert isinstance(document, Document)
    return document, left_out


def reason(record: RawRecord, max_bytes: int = SHAPE.max_bytes) -> str:
    told: list[str] = []
    with pytest.raises(RecordError) as caught:
        decode(record, RecordShape(max_bytes=max_bytes), told.append)
    assert told == []
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
    assert decode(raw(None, b"1")) == Tombstone("1", "default")


def test_tombstone_takes_its_namespace_from_the_last_header() -> None:
    headers = (("namespace", b"old"), ("trace", b"\xff"), ("namespace", b"city"))
    assert decode(raw(None, "né".encode(), headers)) == Tombstone("né", "city")


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
        (b"{", "not_json"),
        (b'{"id": "1", "text": "Rain."} x', "not_json"),
        (b'{"id": "1", "text": "Rain.", "id": "2"}', "not_json"),
        (b'{"id": "1", "text": "Rain.", "n": ' + b"9" * 5000 + b"}", "not_json"),
        (b"[" * 9000, "not_json"),
        (b'{"a":' * 1900, "not_json"),
        (b"\xff\xfe", "not_utf8"),
        ('{"id": "1", "text": "Rain."}'.encode("utf-16"), "not_utf8"),
        (b'{"id": "1", "text": "\\ud800"}', "not_utf8"),
        (b"[]", "schema"),
        (b'"text"', "schema"),
        (b"{}", "schema"),
        ({"text": "Rain."}, "schema"),
        ({"id": "1"}, "schema"),
        ({"id": "", "text": "Rain."}, "schema"),
        ({"id": None, "text": "Rain."}, "schema"),
        ({"id": "i" * 1025, "text": "Rain."}, "schema"),
        ({"id": "1", "text": ""}, "schema"),
        ({"id": "1", "text": " \n\t\u00a0"}, "schema"),
        ({"id": "1", "text": ["Rain."]}, "schema"),
        ({"id": "1", "text": "Rain.", "namespace": ""}, "schema"),
        ({"id": "1", "text": "Rain.", "namespace": "default\n"}, "schema"),
        ({"id": "1", "text": "Rain.", "namespace": "../up"}, "schema"),
        ({"id": "1", "text": "Rain.", "namespace": ["a"]}, "schema"),
        ({"id": "1", "text": "Rain.", "seq": "3"}, "schema"),
        ({"id": "1", "text": "Rain.", "seq": -1}, "schema"),
        ({"id": 1.0, "text": "Rain."}, "schema"),
        ({"id": True, "text": "Rain."}, "schema"),
        (b'{"id": NaN, "text": "Rain."}', "schema"),
        (b'{"id": "1", "text": Infinity}', "schema"),
        (b'{"id": "1\\udfff", "text": "Rain."}', "not_utf8"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not_json"),
    ],
)
def test_value_that_is_no_document_is_refused(value: bytes | dict[str, Any], expected: str) -> None:
    assert reason(raw(value)) == expected


def test_value_above_the_limit_is_refused_and_at_the_limit_read() -> None:
    record = raw({"id": "1", "text": "Rain."})
    assert record.value is not None
    assert decode(record, RecordShape(max_bytes=len(record.value))) == Document("1", "Rain.")
    assert reason(record, len(record.value) - 1) == "too_large"


@pytest.mark.parametrize("key", [b"2", b"", b"1 ", b"\xff", b'{"id":1}', b"news-desk-7"])
def test_document_is_known_by_its_id_whatever_the_key_and_the_key_is_told(key: bytes) -> None:
    assert read_part({"id": "1", "text": "Rain."}, key) == (Document("1", "Rain."), ["key"])


def test_document_without_a_key_is_read() -> None:
    assert read({"id": "1", "text": "Rain."}, None).id == "1"


def test_error_of_a_huge_field_stays_short() -> None:
    assert reason(raw({"id": ["x" * 9000], "text": "Rain."})) == "schema"


@pytest.mark.parametrize("blank", [None, b"", b" \r\n\t", b"null", b" null\n", b"\xef\xbb\xbf", b"\xef\xbb\xbfnull"])
def test_value_that_says_nothing_deletes(blank: bytes | None) -> None:
    assert decode(raw(blank, b"1", (("namespace", b"city"),))) == Tombstone("1", "city")
    assert reason(raw(blank)) == "no_key"


def test_byte_order_mark_is_passed_over() -> None:
    assert read(b'\xef\xbb\xbf{"id": "1", "text": "Rain."}') == Document("1", "Rain.")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"[NaN]", b'{"x": NaN}'])
def test_numbers_that_are_none_do_not_matter_in_foreign_fields(number: bytes) -> None:
    assert read(b'{"id": "1", "text": "Rain.", "score": ' + number + b"}") == Document("1", "Rain.")


def test_whole_numbers_count_as_their_digits() -> None:
    assert read({"id": 41, "text": 7, "title": 2026}, b"41") == Document("41", "7", title="2026")
    assert read({"id": 10**400, "text": "Rain."}).id == "1" + 400 * "0"


FRAMED = [b"\0\0\1\x86\xaa", b"\0" + bytes(7) + b"\5", b"\1" + bytes(range(200, 216)), b"\3\0" + bytes(range(16))]


@pytest.mark.parametrize("frame", FRAMED, ids=["id", "long id", "guid", "glue"])
def test_json_behind_a_registrys_framing_is_read(frame: bytes) -> None:
    assert read(frame + b'{"id": "1", "text": "Rain."}', b"1") == Document("1", "Rain.")
    assert read(frame + b'\xef\xbb\xbf \n{"id": "1", "text": "Rain."}', b"1") == Document("1", "Rain.")
    assert decode(raw(frame + b"null", b"1")) == Tombstone("1")
    assert decode(raw(frame, b"1")) == Tombstone("1")


@pytest.mark.parametrize(
    "value",
    [
        b"\0\0\1\x86\xaa\x14k4-framed\x0cWexley",  # Avro: lengths and texts
        b"\0\0\1\x86\xaa\0\n\x02k4\x12\x04Rain",  # Protobuf: message indexes, tags and texts
        b"\0\0\1\x86\xaa{not json",
        b"\0\0\1",
        b"\0",
        b"\1abc",
        b"\3\5" + bytes(16) + b"x\x9c",  # Glue, compressed
    ],
)
def test_framing_without_json_is_named(value: bytes) -> None:
    with pytest.raises(RecordError, match="Schema Registry framing") as caught:
        decode(raw(value, b"k4"))
    assert caught.value.reason == "schema_registry"


def test_schema_id_of_what_is_not_read_is_told() -> None:
    with pytest.raises(RecordError, match=r"schema id 100010\) and no JSON behind it: Avro and Protobuf"):
        decode(raw(b"\0\0\1\x86\xaa\x02a", b"k4"))


OPTIONAL = {
    "title": [True, 1.5, ["a"], {"a": 1}, "half \ud83d"],
    "url": ["u" * 8193, {}, False],
    "source": [[], 2.0],
    "lang": ["en\u00fc", "x" * 36, "en_GB", ["en"]],
    "published_at": [
        "yesterday",
        "2024-05-01",
        "2024-05-01T12:00:00",
        "2024-13-01T12:00:00Z",
        [2024, 5, 1],
        True,
        12,
        1e30,
    ],
    "expires_at": ["tomorrow", "0001-01-01T00:00:00+10:00", {}, 253402300799, -1],
    "metadata": [{"x": "y" * 17_000}, "half \ud83d", {"\udc00": "x"}, [float("inf")]],
}


@pytest.mark.parametrize(("field", "content"), [(name, one) for name, all_ in OPTIONAL.items() for one in all_])
def test_optional_field_that_cannot_be_understood_is_left_out_and_told(field: str, content: object) -> None:
    value = {"id": "1", "text": "Rain.", "source": "The Daily", "seq": 3} | {field: content}
    document = Document("1", "Rain.", source="" if field == "source" else "The Daily", seq=3)
    shape = RecordShape(max_bytes=100_000)
    left_out: list[str] = []
    # as JSON has no infinity, one that is too large for a number stands for it
    data = json.dumps(value).replace("Infinity", "1e999").encode()
    assert decode(raw(data, b"1"), shape, left_out.append) == document
    assert left_out == [field]


def test_several_fields_that_cannot_be_understood_are_all_told_and_the_rest_is_read() -> None:
    value = {"id": "1", "text": "Rain.", "title": "Weather", "lang": 5.5, "published_at": "soon", "url": []}
    document, left_out = read_part(value, b"other")
    assert document == Document("1", "Rain.", title="Weather")
    assert sorted(left_out) == ["key", "lang", "published_at", "url"]


@pytest.mark.parametrize("field", ["published_at", "expires_at"])
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+01:00", "0000-06-01T00:00:00Z", "9999-12-31T23:59:59-05:00"])
def test_time_that_cannot_be_true_is_told_and_its_document_is_read(field: str, time: str) -> None:
    left_out: list[str] = []
    wrong: list[RecordError] = []
    value = {"id": "1", "text": "Rain.", field: time}
    assert decode(raw(json.dumps(value).encode(), b"1"), RecordShape(), left_out.append, wrong.append) == Document(
        "1", "Rain."
    )
    assert left_out == [field]
    assert [(one.reason, time in str(one), field in str(one)) for one in wrong] == [("bad_time", True, True)]


@pytest.mark.parametrize(
    "time", ["yesterday", "2024-05-01T12:00:00", "0001-01-01T00:00:00Z", 253_402_300_800_000, "0000-00-00T00:00:00Z"]
)
def test_other_times_are_no_reason_for_a_letter(time: object) -> None:
    wrong: list[RecordError] = []
    decode(
        raw(json.dumps({"id": "1", "text": "Rain.", "published_at": time}).encode(), b"1"),
        RecordShape(),
        wrong=wrong.append,
    )
    assert wrong == []


def test_blank_times_count_as_absent() -> None:
    assert read({"id": "1", "text": "Rain.", "published_at": "", "expires_at": " "}) == Document("1", "Rain.")


@pytest.mark.parametrize(
    "metadata",
    [
        {"views": 212, "pinned": True, "score": 0.5, "none": None},
        {"tags": ["market", "eels"], "place": {"name": "Ollen", "at": [1, 2]}},
        ["market", "eels"],
        "market",
        7,
        {str(number): number for number in range(800)},
    ],
)
def test_metadata_is_any_json(metadata: object) -> None:
    assert read({"id": "1", "text": "Rain.", "metadata": metadata}).metadata == metadata


def nested(levels: int) -> Any:
    return {"a": nested(levels - 1)} if levels else 1


def test_metadata_has_a_depth_that_every_reader_can_take() -> None:
    assert read({"id": "1", "text": "Rain.", "metadata": nested(16)}).metadata == nested(16)
    assert read_part({"id": "1", "text": "Rain.", "metadata": nested(17)})[1] == ["metadata"]


def test_a_record_of_this_program_is_read_in_its_own_shape_whatever_the_settings() -> None:
    foreign = RecordShape(
        fields={"id": ("guid",), "text": ("body",)}, id_from="key", key_fields={"id": ("payload.id",)}, deleted_if={}
    )
    own = (("content-type", b"application/vnd.cmt.document.v1+json"),)
    document = Document("1", "Rain.", metadata={"a": 1})
    assert decode(raw(document.to_json(), b"1", own), foreign) == document
    assert decode(raw(None, b"1", (*own, ("namespace", b"city"))), foreign) == Tombstone("1", "city")


def test_schema_is_itself_valid_and_names_every_field_of_the_document() -> None:
    schema = SCHEMA
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
    metadata=st.dictionaries(texts, st.none() | st.integers() | st.booleans() | texts | st.lists(texts), max_size=5),
)


@given(documents)
def test_document_is_read_back_as_written(document: Document) -> None:
    record = RawRecord("documents", 0, 0, 0, document.id.encode(), document.to_json())
    assert decode(record, RecordShape(max_bytes=10**6)) == document


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


PATHS = ["x", "x.x", "text.id", "id", "0", "$", "op", "a.0.b"]
paths = st.sampled_from(PATHS).map(lambda path: (path,)) | st.permutations(PATHS).map(lambda order: tuple(order[:3]))
shapes = st.builds(
    RecordShape,
    fields=st.dictionaries(
        st.sampled_from(["id", "text", "metadata", "published_at", "namespace", "seq", "metadata.x"]), paths
    ),
    id_from=st.sampled_from(["value", "key"]),
    key_fields=st.just({}) | st.fixed_dictionaries({"id": paths}, optional={"namespace": paths}),
    key_pattern=st.sampled_from([None, re.compile("(?P<namespace>[^:]*):?(?P<id>.*)"), re.compile("x(?P<id>y)?")]),
    deleted_if=st.dictionaries(st.sampled_from(PATHS), st.sampled_from([("true",), ("*",), ("null", "1")])),
    epoch_unit=st.sampled_from(["auto", "d", "s", "ms", "us", "ns"]),
    max_bytes=st.sampled_from([0, 10, 10_000]),
)
frames = st.sampled_from([b"", b"\xef\xbb\xbf", *FRAMED])


@given(
    key=st.none() | st.binary(max_size=8) | st.builds(bytes.__add__, frames, values.map(lambda value: value or b"")),
    value=st.none() | st.builds(bytes.__add__, frames, values.map(lambda value: value or b"")),
    headers=st.lists(
        st.tuples(st.sampled_from(["namespace", "seq", "content-type", "x"]), st.binary(max_size=8)), max_size=3
    ).map(tuple),
    shape=shapes,
)
@example(None, b'{"id": ' + b"[" * 980 + b"]" * 980 + b', "text": "a"}', (), RecordShape())
@example(None, b'{"x": ' + b'{"x":' * 900 + b"1" + b"}" * 900 + b"}", (), RecordShape({"id": ("x.x.x",)}))
@example(b"[" * 5000, b'{"id": "a", "text": "a"}', (), RecordShape(key_fields={"id": ("x",)}))
@example(None, json.dumps({"x": "[" * 5000, "id": "a", "text": "a"}).encode(), (), RecordShape({"text": ("x.0",)}))
@example(None, b'{"id": ' + b"9" * 4300 + b', "text": "a", "metadata": ' + b"9" * 4300 + b"}", (), RecordShape())
@example(None, b'{"id": "a", "text": "a", "published_at": ' + b"9" * 4300 + b"}", (), RecordShape(epoch_unit="d"))
@example(None, b'{"id": "a", "text": "a", "published_at": -1e308}', (), RecordShape(epoch_unit="d"))
@example(None, b'{"id": "a", "text": "a", "seq": 1e999}', (), RecordShape())
@example(None, b'{"id": "a", "text": "a", "id": "b"}', (), RecordShape())
@example(b"a", b'{"id": "\\ud800", "__deleted": true}', (), RecordShape())
@example(b'{"x": "\\ud800"}', None, (), RecordShape(key_fields={"id": ("x",)}))
@example(b'{"x": "\\ud800"}', b'{"text": "a"}', (), RecordShape(id_from="key", key_fields={"id": ("x",)}))
def test_no_bytes_raise_anything_but_a_record_error(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...], shape: RecordShape
) -> None:
    try:
        decoded = decode(RawRecord("t", 0, 0, 0, key, value, headers), shape)
    except RecordError as error:
        outcome = error.reason
        one_line = "\n" not in str(error)
    else:
        outcome = "read" if decoded.id and decoded.namespace else "incomplete"
        one_line = True
        if isinstance(decoded, Document):
            decoded.to_json()
        f"{decoded.id} {decoded.namespace}".encode()
    assert one_line
    assert outcome in {"read", "no_key", "too_large", "not_utf8", "not_json", "schema", "schema_registry"}


@given(
    st.dictionaries(
        st.sampled_from(["id", "text", "title", "url", "lang", "namespace", "seq"]),
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
    if decode_module._plainly_valid(value):
        assert decode_module._VALIDATOR.is_valid(value)


@pytest.mark.parametrize(("seq", "expected"), [(7, 7), (3.0, 3), (None, 0), (2**63 - 1, 2**63 - 1)])
def test_producers_own_number_is_read(seq: float | None, expected: int) -> None:
    number = read({"id": "a", "text": "x", "seq": seq}).seq
    assert number == expected
    assert type(number) is int


def test_deletion_takes_its_number_from_the_header() -> None:
    assert decode(raw(None, b"a", (("seq", b"12"),))) == Tombstone("a", seq=12)
    for no_number in (b"-1", b"9" * 19, b"x"):
        assert reason(raw(None, b"a", (("seq", no_number),))) == "schema"
