"""The numbered steps that bring a bank of an older version up to date; the writer takes them when it opens a bank.

A bank carries its number in its table's schema metadata. Steps are safe to repeat, since a crash may come between a step
and the note of its number. Readers read every version up to their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from services.bank.full_text_index import create_full_text_index, indexed_words
from services.bank.index_state import FULL_TEXT_INDEX
from services.bank.schema import SCHEMA_KEY, SCHEMA_VERSION, schema_version

__all__ = ["MIGRATIONS", "Migration", "migrate"]


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: the version that it leads to, what it does, and the doing."""

    version: int
    title: str
    apply: Callable[[Any], None]


def _number_versions(table: Any) -> None:
    if "seq" not in table.schema.names:
        table.add_columns({"seq": "CAST(0 AS BIGINT)"})


def _index_words(table: Any) -> None:
    if "words" not in table.schema.names:
        if FULL_TEXT_INDEX in {one.name for one in table.list_indices()}:
            table.drop_index(FULL_TEXT_INDEX)
        table.to_lance().add_columns(_words_of_texts, read_columns=["title", "text"], batch_size=1024)
        table.checkout_latest()
    if FULL_TEXT_INDEX not in {one.name for one in table.list_indices()}:
        create_full_text_index(table)


def _words_of_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    rows = zip(batch["title"].to_pylist(), batch["text"].to_pylist(), strict=True)
    found = [None if text is None else indexed_words(text, title) for title, text in rows]
    return pa.record_batch([pa.array(found, pa.string())], names=["words"])


def _trim_memories(table: Any) -> None:
    if "memory" in table.schema.names and pa.types.is_fixed_size_binary(table.schema.field("memory").type):
        dataset = table.to_lance()
        if "trimmed" in table.schema.names:  # of a try that was cut off
            dataset.drop_columns(["trimmed"])
        dataset.add_columns(_trimmed, read_columns=["memory"], batch_size=256)
        dataset.drop_columns(["memory"])
        table.checkout_latest()
    if "trimmed" in table.schema.names:
        table.alter_columns({"path": "trimmed", "rename": "memory"})


def _trimmed(batch: pa.RecordBatch) -> pa.RecordBatch:
    memories = (one if one is None else one.rstrip(b"\0") for one in batch["memory"].to_pylist())
    return pa.record_batch([pa.array(list(memories), pa.binary())], names=["trimmed"])


def _keep_metadata(table: Any) -> None:
    names = table.schema.names
    added = (pa.field("metadata", pa.string()), pa.field("labels", pa.list_(pa.string())))
    if missing := [field for field in added if field.name not in names]:
        table.to_lance().add_columns(missing)


def _keep_tokens(table: Any) -> None:
    if "tokens" not in table.schema.names:
        table.to_lance().add_columns([pa.field("tokens", pa.binary())])


MIGRATIONS: Sequence[Migration] = (
    Migration(2, "producers can number the versions of a document", _number_versions),
    Migration(3, "the words of the texts are indexed", _index_words),
    Migration(4, "memories are kept without the zeros at their end", _trim_memories),
    Migration(5, "the words are a column of their own, also of scripts without spaces", _index_words),
    Migration(6, "metadata is kept, with labels to filter by", _keep_metadata),
    Migration(7, "the encoder's tokens are kept, of what is written from now on", _keep_tokens),
)


def migrate(table: Any) -> list[Migration]:
    """Brings a table up to this program's version and gives the steps taken. Raises what Lance raises."""
    taken = [step for step in MIGRATIONS if step.version > schema_version(table.schema)]
    for step in taken:
        step.apply(table)
        table.checkout_latest()
    if taken:
        table.to_lance().update_schema_metadata({SCHEMA_KEY.decode(): str(SCHEMA_VERSION)})
        table.checkout_latest()
    return taken
