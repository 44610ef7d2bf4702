"""The document record: what one Kafka record holds once it is read, and the headers that records may carry."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

__all__ = [
    "CONTENT_TYPE",
    "CONTENT_TYPE_HEADER",
    "DEFAULT_NAMESPACE",
    "FIELDS",
    "NAMESPACE_HEADER",
    "PLACE_HEADER",
    "SCHEMA",
    "SEQ_HEADER",
    "Document",
    "RawRecord",
    "Tombstone",
    "original_place",
]

DEFAULT_NAMESPACE = "default"
NAMESPACE_HEADER = "namespace"
SEQ_HEADER = "seq"
PLACE_HEADER = "cmt-place"
"""epoch/partition/offset at which a dead letter first stood: a replay keeps its place in the order of versions."""
CONTENT_TYPE_HEADER = "content-type"
CONTENT_TYPE = b"application/vnd.cmt.document.v1+json"
"""Of records in this program's own shape: they are read so beside records of other producers, whatever the settings."""

SCHEMA: dict[str, Any] = json.loads(files("services.stream").joinpath("document.v1.schema.json").read_bytes())
FIELDS = tuple(SCHEMA["properties"])

_PLACE = re.compile(rb"(\d{1,18})/(\d{1,9})/(\d{1,18})")
_LAST_MS = 253_402_300_799_999  # of the year 9999, where Python's and the bank's times end


@dataclass(frozen=True, slots=True)
class Document:
    """One version of a document; times are timezone-aware and kept in UTC (ValueError for a naive one).

    `metadata` is any JSON, as `json.loads` gives it.
    """

    id: str
    text: str
    title: str = ""
    url: str = ""
    source: str = ""
    published_at: datetime | None = None
    lang: str = ""
    namespace: str = DEFAULT_NAMESPACE
    expires_at: datetime | None = None
    metadata: Any = field(default_factory=dict, hash=False)
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
        for name in FIELDS:
            content = getattr(self, name)
            if isinstance(content, datetime):
                value[name] = content.isoformat().replace("+00:00", "Z")
            elif content:
                value[name] = content
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The deletion of a document."""

    id: str
    namespace: str = DEFAULT_NAMESPACE
    seq: int = 0


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A Kafka record as it came: bytes untouched, timestamp in milliseconds since 1970, -1 when it has none.

    Kafka checks no timestamp: one beyond the year 9999 is taken for the micro- or nanoseconds that some producers write.

    `undecodable` says why the Kafka client could not make records of what stands there: then `value` holds the bytes of
    the record, or of the whole batch as it is in the log, which stands for `covers` offsets from `offset` on.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    undecodable: str = ""
    covers: int = 1

    def __post_init__(self) -> None:
        if not -1 <= self.timestamp_ms <= _LAST_MS:
            time_ms = max(-1, self.timestamp_ms)
            while time_ms > _LAST_MS:
                time_ms //= 1000
            object.__setattr__(self, "timestamp_ms", time_ms)


def original_place(record: RawRecord) -> tuple[int, int, int] | None:
    """(epoch, partition, offset) of a dead letter that was sent again, None for other records."""
    place = next((value for name, value in record.headers if name == PLACE_HEADER), b"")
    found = _PLACE.fullmatch(place)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None
