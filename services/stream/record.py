"""The document record: what one Kafka record holds, and how its bytes are checked and read.

`decode` never raises anything but RecordError. Its reasons:

    no_key         neither key nor value says which document is meant
    too_large      the value has more bytes than allowed
    not_utf8       key, value or namespace header is not UTF-8, or a text holds a lone surrogate
    not_json       the value is not JSON (NaN, a name given twice and endless nesting included)
    schema         the JSON (or the header `seq` of a deletion) does not fit document.v1.schema.json
    bad_time       a time is not an RFC 3339 date and time with an offset
    key_mismatch   the key differs from the value's id; the key orders the records of a document
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, ValidationError

from services.errors import RecordError, SettingsError

__all__ = [
    "DEFAULT_NAMESPACE",
    "NAMESPACE_HEADER",
    "PLACE_HEADER",
    "SEQ_HEADER",
    "Document",
    "RawRecord",
    "Tombstone",
    "check_field_map",
    "decode",
    "original_place",
]

DEFAULT_NAMESPACE = "default"
NAMESPACE_HEADER = "namespace"
SEQ_HEADER = "seq"
PLACE_HEADER = "cmt-place"
"""epoch/partition/offset at which a dead letter first stood: a replay keeps its place in the order of versions."""

_SCHEMA: dict[str, Any] = json.loads(files("services.stream").joinpath("document.v1.schema.json").read_bytes())
_FIELDS = tuple(_SCHEMA["properties"])
_VALIDATOR = Draft202012Validator(_SCHEMA)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_LANG, _NAMESPACE = re.compile(r"[A-Za-z0-9-]*"), re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PLACE = re.compile(rb"(\d{1,18})/(\d{1,9})/(\d{1,18})")
_DETAIL_CHARS = 200
_SEQ_DIGITS = 19
_PLAIN_CHARS = {
    name: int(rule["maxLength"]) for name, rule in _SCHEMA["properties"].items() if "maxLength" in rule
}  # of the schema, by field


@dataclass(frozen=True, slots=True)
class Document:
    """One version of a document; times are timezone-aware and kept in UTC (ValueError for a naive one)."""

    id: str
    text: str
    title: str = ""
    url: str = ""
    source: str = ""
    published_at: datetime | None = None
    lang: str = ""
    namespace: str = DEFAULT_NAMESPACE
    expires_at: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    seq: int = 0

    def __post_init__(self) -> None:
        for name in ("published_at", "expires_at"):
            time: datetime | None = getattr(self, name)
            if time is None:
                continue
            if time.tzinfo is None:
                raise ValueError(f"{name} has no time zone")
            object.__setattr__(self, name, time.astimezone(UTC))

    def to_json(self) -> bytes:
        """The record's value: UTF-8 JSON that `decode` reads back as an equal document; empty fields are left out."""
        value: dict[str, Any] = {}
        for name in _FIELDS:
            content = getattr(self, name)
            if isinstance(content, datetime):
                value[name] = content.isoformat().replace("+00:00", "Z")
            elif content:
                value[name] = dict(content) if name == "metadata" else content
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The deletion of a document."""

    id: str
    namespace: str = DEFAULT_NAMESPACE
    seq: int = 0


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A Kafka record as it came: bytes untouched, timestamp in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def decode(record: RawRecord, field_map: Mapping[str, str], max_bytes: int) -> Document | Tombstone:
    """Reads a record; `field_map` says where other producers keep a field: {"id": "guid", "text": "body.content"}.

    A null value with a key is a Tombstone, in the namespace of the header `namespace` and with the number of the header
    `seq`. Fields that the map does not
    name are read under their own names; a mapped whole number becomes text. Raises RecordError, and nothing else.
    """
    try:
        if record.value is None:
            return _tombstone(record)
        if len(record.value) > max_bytes:
            raise RecordError("too_large", f"the value has {len(record.value)} bytes, more than {max_bytes}")
        fields = _mapped(_parse(record.value), field_map)
        # half a UTF-16 pair can't be spelt in UTF-8, only in an escape
        document = _document(fields, may_hold_surrogates=b"\\u" in record.value)
    except RecursionError:
        raise RecordError("not_json", "the value is nested too deeply") from None
    if record.key is not None and record.key != document.id.encode():
        raise RecordError("key_mismatch", f"the key {_shown(record.key)} is not the id {_shown(document.id)}")
    return document


def original_place(record: RawRecord) -> tuple[int, int, int] | None:
    """(epoch, partition, offset) of a dead letter that was sent again, None for other records."""
    place = next((value for name, value in record.headers if name == PLACE_HEADER), b"")
    found = _PLACE.fullmatch(place)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def check_field_map(field_map: Mapping[str, str]) -> None:
    """Raises SettingsError when a field map names a field that documents do not have, or an empty path."""
    for name, path in field_map.items():
        if name not in _FIELDS:
            raise SettingsError(
                f"settings: kafka.field_map: documents have no field {name!r} (only {', '.join(_FIELDS)})"
            )
        if not all(path.split(".")):
            raise SettingsError(f"settings: kafka.field_map: {name}: {path!r} is not a dotted path")


def _tombstone(record: RawRecord) -> Tombstone:
    if not record.key:
        raise RecordError("no_key", "a record without value needs a key that says which document to delete")
    headers = dict(record.headers)  # of two of one name the last
    namespace, seq = headers.get(NAMESPACE_HEADER, b""), headers.get(SEQ_HEADER) or b"0"
    identity = {
        "id": _utf8(record.key, "the key"),
        "namespace": _utf8(namespace, "the namespace header") or DEFAULT_NAMESPACE,
    }
    if not (seq.isdigit() and len(seq) <= _SEQ_DIGITS):
        raise RecordError("schema", f"the header seq: {_shown(seq)} is no number of a version")
    _validate({**identity, "text": "-", "seq": int(seq)})
    return Tombstone(**identity, seq=int(seq))


def _parse(value: bytes) -> dict[str, Any]:
    text = _utf8(value, "the value")
    try:
        parsed = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise RecordError("not_json", f"the value is not JSON: {_shortened(str(error))}") from None
    if not isinstance(parsed, dict):
        raise RecordError("schema", f"the value is a JSON {type(parsed).__name__}, not an object")
    return parsed


def _mapped(value: dict[str, Any], field_map: Mapping[str, str]) -> dict[str, Any]:
    """The known fields of a value, null ones left out."""
    if not field_map:
        return {name: value[name] for name in _FIELDS if value.get(name) is not None}
    found = {name: _at(value, field_map[name], name) if name in field_map else value.get(name) for name in _FIELDS}
    return {name: content for name, content in found.items() if content is not None}


def _at(value: Any, path: str, name: str) -> Any:
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    if isinstance(value, int) and not isinstance(value, bool) and name != "seq":
        return str(value)
    return value


def _document(value: dict[str, Any], *, may_hold_surrogates: bool) -> Document:
    if not _plainly_valid(value):
        _validate(value)
    for name, content in value.items() if may_hold_surrogates else ():
        parts = (*content.keys(), *content.values()) if isinstance(content, dict) else (content,)
        for text in (part for part in parts if isinstance(part, str)):
            _no_surrogates(name, text)
    fields = dict(value)
    if "seq" in fields:
        fields["seq"] = int(fields["seq"])  # JSON Schema takes 3.0 for an integer
    for name in ("published_at", "expires_at"):
        if name in fields:
            fields[name] = _time(name, fields[name])
    return Document(**fields)


def _plainly_valid(value: dict[str, Any]) -> bool:
    """Whether a value certainly fits the schema: a shortcut for what nearly every record is, without false positives.

    What it says no to is decided by the schema. (A hundred times faster: validating was half of a record's way.)
    """
    for name, content in value.items():
        if name == "metadata":
            if type(content) is not dict or len(content) > 64 or not all(type(one) is str for one in content.values()):
                return False
        elif name == "seq":
            if type(content) is not int or not 0 <= content < 2**63:
                return False
        elif type(content) is not str or len(content) > _PLAIN_CHARS.get(name, len(content)):
            return False
    text = value.get("text", "")
    return bool(
        value.get("id")
        and text
        and not text.isspace()
        and _LANG.fullmatch(value.get("lang", ""))
        and _NAMESPACE.fullmatch(value.get("namespace", DEFAULT_NAMESPACE))
    )


def _validate(value: dict[str, Any]) -> None:
    for error in _VALIDATOR.iter_errors(value):
        raise RecordError("schema", _explained(error))


def _explained(error: ValidationError) -> str:
    if error.validator == "required":
        return _shortened(error.message)
    name = ".".join(str(part) for part in error.absolute_path)
    if name == "text":
        return "text: must be a text that is not blank"
    if error.validator == "not":
        return f"{name}: holds a line break"
    return _shortened(f"{name}: {error.message}")


def _time(name: str, text: str) -> datetime:
    try:
        if not _RFC3339.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RecordError("bad_time", f"{name}: {_shown(text)} is not an RFC 3339 time with an offset") from None


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RecordError("not_utf8", f"{what} is not UTF-8 (byte {error.start})") from None


def _no_surrogates(name: str, text: str) -> None:
    """JSON can spell half a UTF-16 pair, which no file, bank or reply can hold as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError("not_utf8", f"{name}: lone surrogate at character {error.start}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"name {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _shown(content: str | bytes) -> str:
    return _shortened(repr(content[:_DETAIL_CHARS]))


def _shortened(text: str) -> str:
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= _DETAIL_CHARS else line[: _DETAIL_CHARS - 3] + "..."
