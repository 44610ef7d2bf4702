"""The table of a bank: its columns, and the layout that its memories have.

One row is one chunk (window) of one version of a document. An update closes the rows of the old version
(`superseded_at`) and adds new ones; a delete closes them (`deleted_at`) and adds a guard row, chunk -1, that has no
memory and only remembers the position of the delete, so that a late, older write can't bring the document back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

from services.errors import BankUnavailable

__all__ = [
    "GUARD_CHUNK",
    "MOVED_KEY",
    "SCHEMA_KEY",
    "SCHEMA_VERSION",
    "TABLE_NAME",
    "BankLayout",
    "schema_version",
]

TABLE_NAME = "memories"
GUARD_CHUNK = -1
"""`chunk_no` of the row that stands for a delete."""
SCHEMA_VERSION = 7
"""Of the table's columns and indexes; `migrations` lists the steps."""
SCHEMA_KEY = b"cmt.schema"
MOVED_KEY = b"cmt.moved_to"
"""In the first table of a bank that was re-encoded: the name of the table that has the memories now."""
_METADATA_KEY = b"cmt.bank"
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class BankLayout:
    """Who wrote a bank: the checkpoint's fingerprint, the length of a key and the bytes of a memory.

    It travels in the table's schema metadata, because memories of two checkpoints must never be mixed.
    """

    model_id: str
    d_key: int
    memory_bytes: int

    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of the table, with this layout in its metadata."""
        return pa.schema(
            [
                pa.field("namespace", pa.string(), nullable=False),
                pa.field("doc_id", pa.string(), nullable=False),
                pa.field("chunk_no", pa.int32(), nullable=False),
                pa.field("n_chunks", pa.int32(), nullable=False),
                pa.field("topic_epoch", pa.int64(), nullable=False),
                pa.field("partition", pa.int32(), nullable=False),
                pa.field("offset", pa.int64(), nullable=False),
                pa.field("seq", pa.int64(), nullable=False),
                pa.field("record_time", _TIME, nullable=False),
                pa.field("title", pa.string()),
                pa.field("url", pa.string()),
                pa.field("source", pa.string()),
                pa.field("text", pa.string()),
                pa.field("words", pa.string()),  # of title and text, with spaces between them, for the full-text index
                pa.field("published_at", _TIME),
                pa.field("ingested_at", _TIME, nullable=False),
                pa.field("superseded_at", _TIME),
                pa.field("deleted_at", _TIME),
                pa.field("expires_at", _TIME),
                pa.field("model_id", pa.string(), nullable=False),
                pa.field("n_tokens", pa.int32(), nullable=False),
                pa.field("key", pa.list_(pa.float16(), self.d_key), nullable=False),
                pa.field("memory", pa.binary()),  # without the zeros at its end
                pa.field("metadata", pa.string()),  # as JSON
                pa.field("labels", pa.list_(pa.string())),  # of the metadata, for filters
                pa.field("tokens", pa.binary()),  # of the encoder, packed (cmt_core/retrieval/late_interaction.py)
            ],
            metadata={
                _METADATA_KEY: json.dumps({"format": 1} | asdict(self)).encode(),
                SCHEMA_KEY: str(SCHEMA_VERSION).encode(),
            },
        )

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> BankLayout:
        """The layout that a table was created with; BankUnavailable when the table is not a bank of this format."""
        try:
            stored = json.loads((schema.metadata or {})[_METADATA_KEY])
            if stored.pop("format") != 1 or schema_version(schema) > SCHEMA_VERSION:
                raise BankUnavailable(
                    f"it is of version {schema_version(schema)}, this program knows versions up to "
                    f"{SCHEMA_VERSION}: update this program"
                )
            return cls(**stored)
        except (KeyError, TypeError, ValueError):
            raise BankUnavailable(f"its table `{TABLE_NAME}` is not a memory bank, or is damaged") from None


def schema_version(schema: pa.Schema) -> int:
    """The version of a bank's table; 1 before versions were numbered."""
    return int((schema.metadata or {}).get(SCHEMA_KEY, b"1"))
