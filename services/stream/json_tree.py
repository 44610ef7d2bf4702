"""Reads the JSON of records, bare or behind a schema registry's framing, and finds parts of it by dotted paths."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from typing import Any

from services.errors import RecordError

__all__ = ["ABSENT", "JsonTree", "parse_json", "quoted_shortly", "shortened", "utf8"]

ABSENT = object()
"""What stands at a path that leads nowhere; null is something else."""

# A registry's framing begins with a byte that no JSON text begins with; the bytes before the content, by that byte.
_FRAMES = {
    0: ("Schema Registry", (5, 9)),  # a schema id of 4 bytes, or of 8 (Apicurio)
    1: ("Schema Registry", (17,)),  # a schema GUID
    3: ("AWS Glue Schema Registry", (18,)),  # compression, schema version id
}
_JSON_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*(?:[{\[\"]|null[ \t\r\n]*\Z|\Z)")
_DETAIL_CHARS = 200


class JsonTree:
    """A parsed value in which parts are looked up by paths.

    A path is names joined by dots; a number is a place in a list, `$` the whole. A text on the way is read as JSON, and
    a name may itself have dots.
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        self._parsed: dict[str, Any] = {}

    def at(self, path: str) -> Any:
        """What stands there, or ABSENT."""
        return self.root if path == "$" else self._below(self.root, path)

    def first(self, paths: tuple[str, ...]) -> Any:
        """What stands at the first path that leads to something else than null; None when none does."""
        for path in paths:
            found = self.at(path)
            if found is not ABSENT and found is not None:
                return found
        return None

    def opened(self) -> Any:
        """The root; one that is a text, as some converters write it, read as JSON."""
        return self._read(self.root) if isinstance(self.root, str) else self.root

    def _below(self, value: Any, path: str) -> Any:
        if isinstance(value, str):
            value = self._read(value)
        if isinstance(value, list):
            number, _, rest = path.partition(".")
            if not (number.isascii() and number.isdigit() and int(number) < len(value)):
                return ABSENT
            return self._below(value[int(number)], rest) if rest else value[int(number)]
        if not isinstance(value, dict):
            return ABSENT
        if path in value:
            return value[path]
        for dot in (place for place, char in enumerate(path) if char == "."):
            if path[:dot] in value and (found := self._below(value[path[:dot]], path[dot + 1 :])) is not ABSENT:
                return found
        return ABSENT

    def _read(self, text: str) -> Any:
        if text not in self._parsed:
            try:
                self._parsed[text] = _loads(text)
            except ValueError:
                self._parsed[text] = ABSENT
        return self._parsed[text]


def parse_json(data: bytes, what: str) -> Any:
    """The JSON in the bytes of a record's key or value (`what` in errors), None also for blank bytes.

    A byte order mark and a registry's framing are passed over; NaN and Infinity count as null. Raises RecordError:
    not_utf8, not_json (a name given twice included), schema_registry for framing with no JSON behind it; RecursionError
    for endless nesting.
    """
    size = _framing(data, what)
    text = utf8(data[size:].removeprefix(BOM_UTF8), what)
    if not text or text.isspace():
        return None
    try:
        return _loads(text)
    except ValueError as error:
        if size:
            raise _no_json_behind(data, what) from None
        raise RecordError("not_json", f"{what} is not JSON: {shortened(str(error))}") from None


def utf8(data: bytes, what: str) -> str:
    """The text of bytes; RecordError not_utf8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RecordError("not_utf8", f"{what} is not UTF-8 (byte {error.start})") from None


def quoted_shortly(content: str | bytes) -> str:
    """The beginning of a text in quotes, for an error's one line."""
    return shortened(repr(content[:_DETAIL_CHARS]))


def shortened(text: str) -> str:
    """One line of at most 200 characters, which any terminal or header can hold."""
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= _DETAIL_CHARS else line[: _DETAIL_CHARS - 3] + "..."


def _framing(data: bytes, what: str) -> int:
    """The bytes that a registry has put before the JSON; 0 for bare JSON."""
    if not data or data[0] not in _FRAMES:
        return 0
    for size in _FRAMES[data[0]][1]:
        if len(data) >= size and _JSON_BEGINS.match(data, size):
            return size
    raise _no_json_behind(data, what)


def _no_json_behind(data: bytes, what: str) -> RecordError:
    registry = _FRAMES[data[0]][0]
    schema = f" (schema id {int.from_bytes(data[1:5], 'big')})" if data[0] == 0 and len(data) >= 5 else ""
    return RecordError(
        "schema_registry",
        f"{what} has {registry} framing{schema} and no JSON behind it: Avro and Protobuf are not read here, "
        "let the producer or a connector write JSON",
    )


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: None, object_pairs_hook=_no_duplicates)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"name {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found
