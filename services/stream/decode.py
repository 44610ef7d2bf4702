"""Reads a Kafka record as a document or a deletion, in the shape that the settings describe.

`decode` never raises anything but RecordError. Its reasons:

    undecodable       the Kafka client could not make a record of the bytes (codec, checksum, structure)
    no_key            nothing says which document is meant: a deletion without a key, or a key that does not fit the settings
    too_large         the value has more bytes than allowed
    not_utf8          value, key or namespace header is not UTF-8, or id, text or namespace hold a lone surrogate
    not_json          the value, or a key that should be, is not JSON (a name given twice and endless nesting included)
    schema_registry   a schema registry's framing has no JSON behind it: Avro, Protobuf
    schema            id, text, namespace or seq do not fit document.v1.schema.json

An optional field that can't be understood never costs the document: it is left out, and told to the caller. One that is
understood and can't be true (bad_time: a moment outside the years 1 to 9999) is told as an error besides, for a letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from services.errors import RecordError
from services.stream.json_tree import JsonTree, parse_json, quoted_shortly, shortened, utf8
from services.stream.record import (
    CONTENT_TYPE,
    CONTENT_TYPE_HEADER,
    DEFAULT_NAMESPACE,
    FIELDS,
    NAMESPACE_HEADER,
    SCHEMA,
    SEQ_HEADER,
    Document,
    RawRecord,
    Tombstone,
)
from services.stream.shape import METADATA_PREFIX, RecordShape
from services.stream.times import is_beyond_calendars, moment_of

__all__ = ["BAD_TIME", "DOCUMENT_SHAPE", "decode"]

BAD_TIME = "bad_time"
"""The reason of a letter whose document is read all the same."""

DOCUMENT_SHAPE = RecordShape()
"""Of the document record itself."""

_VALIDATOR = Draft202012Validator(SCHEMA)
_LANG, _NAMESPACE = re.compile(r"[A-Za-z0-9-]*"), re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEQ_DIGITS = 19
_MAX_CHARS = {name: int(rule["maxLength"]) for name, rule in SCHEMA["properties"].items() if "maxLength" in rule}
_TIMES = ("published_at", "expires_at")
_OPTIONAL = ("title", "url", "source", "lang", *_TIMES, "metadata")
_TEXTS = ("id", "text", "namespace", "title", "url", "source", "lang")
_MAX_METADATA_BYTES = 16 * 1024  # every row of a document carries it
_MAX_METADATA_DEPTH = 16


class _Lost(list[str]):
    """The names of fields that are left out, and errors that are wrong content's, not a lack of understanding."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[RecordError] = []


def decode(
    record: RawRecord,
    shape: RecordShape = DOCUMENT_SHAPE,
    left_out: Callable[[str], None] = lambda name: None,
    wrong: Callable[[RecordError], None] = lambda error: None,
) -> Document | Tombstone:
    """Reads a record; one with this program's own content type is read in its own shape.

    A null, blank or JSON null value is a Tombstone, and so is one that `shape.deleted_if` describes; the namespace and the
    number of a deletion may stand in the headers `namespace` and `seq`. `left_out` is called with the name of every
    optional field that could not be understood, and with `key` where the key is not the document's id, so that a
    deletion by that key would not find it; `wrong` with an error for each that was understood and can't be true. Raises
    RecordError, and nothing else.
    """
    if (CONTENT_TYPE_HEADER, CONTENT_TYPE) in record.headers:
        shape = RecordShape(max_bytes=shape.max_bytes)
    lost = _Lost()
    try:
        decoded = _decoded(record, shape, lost)
    except RecursionError:
        raise RecordError("not_json", "the record is nested too deeply") from None
    for name in lost:
        left_out(name)
    for error in lost.wrong:
        wrong(error)
    return decoded


def _decoded(record: RawRecord, shape: RecordShape, lost: _Lost) -> Document | Tombstone:
    if record.undecodable:
        raise RecordError("undecodable", record.undecodable)
    value = record.value or b""
    if len(value) > shape.max_bytes:
        raise RecordError("too_large", f"the value has {len(value)} bytes, more than {shape.max_bytes}")
    tree = JsonTree(parse_json(value, "the value"))
    if tree.root is None:
        return _tombstone(record, shape, {})
    fields = _fields(tree, shape)
    if shape.deletes(tree):
        return _tombstone(record, shape, fields)
    _take_key(fields, record.key, shape, lost)
    # half a UTF-16 pair can't be spelt in UTF-8, only in an escape
    return _document(fields, shape, lost, may_hold_surrogates=b"\\u" in value or b"\\u" in (record.key or b""))


def _fields(tree: JsonTree, shape: RecordShape) -> dict[str, Any]:
    """The known fields of a value, null ones left out; whole numbers count as their digits where a text is wanted."""
    root = tree.opened()
    if not isinstance(root, dict):
        raise RecordError("schema", f"the value is a JSON {type(tree.root).__name__}, not an object")
    found = {name: tree.first(shape.fields[name]) if name in shape.fields else root.get(name) for name in FIELDS}
    members = {
        name.removeprefix(METADATA_PREFIX): member
        for name, paths in shape.fields.items()
        if name.startswith(METADATA_PREFIX) and (member := tree.first(paths)) is not None
    }
    if members:
        whole = found["metadata"]
        found["metadata"] = (whole if isinstance(whole, dict) else {}) | members
    for name in _TEXTS:
        if type(found[name]) is int:
            found[name] = str(found[name])
    return {name: content for name, content in found.items() if content is not None}


def _take_key(fields: dict[str, Any], key: bytes | None, shape: RecordShape, lost: list[str]) -> None:
    """Adds to a document's fields what its key says: the id, where that is its place, and a namespace."""
    if key is None and shape.id_from == "value":
        return
    try:
        named = _key_fields(key, shape)
    except RecordError:
        if shape.id_from == "key":
            raise
        lost.append("key")
        return
    if shape.id_from == "key":
        fields["id"] = named["id"]
    elif named["id"] != fields.get("id"):
        lost.append("key")
    if "namespace" in named:
        fields.setdefault("namespace", named["namespace"])


def _key_fields(key: bytes | None, shape: RecordShape) -> dict[str, str]:
    """The id that a key names, and the namespace if it does. Raises RecordError."""
    if not key:
        raise RecordError("no_key", "there is no key that says which document is meant")
    if not shape.key_fields or (shape.plain_keys and not key.lstrip().startswith(b"{")):
        text = utf8(key, "the key")
        if shape.key_pattern is None:
            return {"id": text}
        match = shape.key_pattern.fullmatch(text)
        named = {name: part for name, part in match.groupdict().items() if part} if match else {}
        if "id" not in named:
            raise RecordError("no_key", f"the key {quoted_shortly(key)} does not fit kafka.key_pattern")
        return named
    tree = JsonTree(parse_json(key, "the key"))
    named = {}
    for name, paths in shape.key_fields.items():
        found = tree.first(paths)
        if isinstance(found, str) or type(found) is int:
            named[name] = str(found)
    if not named.get("id"):
        raise RecordError("no_key", f"the key {quoted_shortly(key)} has no id where kafka.key_map looks for it")
    return named


def _tombstone(record: RawRecord, shape: RecordShape, fields: dict[str, Any]) -> Tombstone:
    """The deletion of the document that the value's fields name, else the key; headers say what these don't."""
    said = {name: fields[name] for name in ("id", "namespace", "seq") if name in fields}
    if shape.id_from == "key":
        said.pop("id", None)
    headers = dict(record.headers)  # of two of one name the last
    if namespace := utf8(headers.get(NAMESPACE_HEADER, b""), "the namespace header"):
        said.setdefault("namespace", namespace)
    said.setdefault("seq", _seq(headers.get(SEQ_HEADER) or b"0"))
    try:
        named = _key_fields(record.key, shape)
    except RecordError:
        if "id" not in said:
            raise
        named = {}
    identity = {"namespace": DEFAULT_NAMESPACE} | named | said
    fields = _valid(identity | {"text": "-"}, [])
    _refuse_surrogates(fields, [])
    return Tombstone(fields["id"], fields["namespace"], int(fields["seq"]))


def _seq(header: bytes) -> int:
    if not (header.isdigit() and len(header) <= _SEQ_DIGITS):
        raise RecordError("schema", f"the header seq: {quoted_shortly(header)} is no number of a version")
    return int(header)


def _document(fields: dict[str, Any], shape: RecordShape, lost: _Lost, *, may_hold_surrogates: bool) -> Document:
    for name in _TIMES:
        if name in fields:
            _take_time(fields, name, shape, lost)
    metadata = fields.pop("metadata", None)
    if metadata is not None and not _storable(metadata):
        lost.append("metadata")
        metadata = None
    if not _plainly_valid(fields):
        fields = _valid(fields, lost)
    if may_hold_surrogates:
        _refuse_surrogates(fields, lost)
    if "seq" in fields:
        fields["seq"] = int(fields["seq"])  # JSON Schema takes 3.0 for an integer
    return Document(**fields, **({} if metadata is None else {"metadata": metadata}))


def _take_time(fields: dict[str, Any], name: str, shape: RecordShape, lost: _Lost) -> None:
    """Puts the moment in the place of a time as it was written, or takes it out."""
    written = fields.pop(name)
    if isinstance(written, str) and not written.strip():
        return
    moment = moment_of(written, shape.epoch_unit)
    if moment is not None:
        fields[name] = moment
        return
    lost.append(name)
    if is_beyond_calendars(written):
        lost.wrong.append(RecordError(BAD_TIME, f"{name}: {written} is not in the years 1 to 9999; read without it"))


def _storable(metadata: Any) -> bool:
    """Whether a bank can keep it: not too large or deep, and JSON that every reader takes (no half pairs, no 1e999)."""
    if _deeper_than(metadata, _MAX_METADATA_DEPTH):
        return False
    try:
        return len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()) <= _MAX_METADATA_BYTES
    except ValueError:
        return False


def _deeper_than(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper_than(one, levels - 1) for one in inner)


def _plainly_valid(fields: dict[str, Any]) -> bool:
    """Whether fields certainly fit the schema: a shortcut for what nearly every record is, without false positives.

    What it says no to is decided by the schema. (A hundred times faster: validating was half of a record's way.)
    """
    for name, content in fields.items():
        if name in _TIMES:
            continue
        if name == "seq":
            if type(content) is not int or not 0 <= content < 2**63:
                return False
        elif type(content) is not str or len(content) > _MAX_CHARS.get(name, len(content)):
            return False
    text = fields.get("text", "")
    return bool(
        fields.get("id")
        and text
        and not text.isspace()
        and _LANG.fullmatch(fields.get("lang", ""))
        and _NAMESPACE.fullmatch(fields.get("namespace", DEFAULT_NAMESPACE))
    )


def _valid(fields: dict[str, Any], lost: list[str]) -> dict[str, Any]:
    """The fields that fit the schema, optional ones that don't left out. Raises RecordError for id, text and the like."""
    times = {name: fields[name] for name in _TIMES if name in fields}
    written = {name: content for name, content in fields.items() if name not in times}
    bad: dict[str, str] = {
        name: f"{name}: must be a text" for name in _TEXTS if not isinstance(written.get(name, ""), str)
    }
    for error in _VALIDATOR.iter_errors(written):
        name = str(error.absolute_path[0]) if error.absolute_path else ""
        bad.setdefault(name, _explained(error))
    for name, why in bad.items():
        if name not in _OPTIONAL:
            raise RecordError("schema", why)
        lost.append(name)
    return {name: content for name, content in written.items() if name not in bad} | times


def _explained(error: ValidationError) -> str:
    if error.validator == "required":
        return shortened(error.message)
    name = ".".join(str(part) for part in error.absolute_path)
    if name == "text":
        return "text: must be a text that is not blank"
    if error.validator == "not":
        return f"{name}: holds a line break"
    return shortened(f"{name}: {error.message}")


def _refuse_surrogates(fields: dict[str, Any], lost: list[str]) -> None:
    """JSON can spell half a UTF-16 pair, which no file, bank or reply can hold as UTF-8."""
    for name in [name for name in _TEXTS if name in fields]:
        try:
            fields[name].encode()
        except UnicodeEncodeError as error:
            if name not in _OPTIONAL:
                raise RecordError("not_utf8", f"{name}: lone surrogate at character {error.start}") from None
            lost.append(name)
            del fields[name]
