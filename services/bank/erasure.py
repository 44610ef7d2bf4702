"""Takes rows out of a bank for good: one document at once, or what ended before the history that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from services.bank.filters import ended_before, of_documents
from services.bank.indexing import rebuild_words

__all__ = ["erase_deleted", "erase_documents", "remove_history"]


def erase_documents(table: Any, documents: Sequence[tuple[str, str]]) -> int:
    """Removes all versions of the documents from the table, from its older versions and from its full-text index.

    Guard rows stay: they hold no more than the id and the place in Kafka, and keep a replay from bringing the document
    back. Returns the rows removed. Everything older than now is cleaned up, so that a reader which is in the middle of a
    search has to ask again; the bank must have no other process that writes to it. Raises what Lance raises.
    """
    where = f"{of_documents(documents)} AND chunk_no >= 0"
    removed = int(table.count_rows(where))
    if removed:
        table.delete(where)
    erase_deleted(table)
    return removed


def erase_deleted(table: Any) -> None:
    """Takes deleted rows out of the table's files, of its older versions and of its full-text index."""
    dataset = table.to_lance()
    dataset.optimize.compact_files(
        target_rows_per_fragment=1,  # no fragment is merged: only those with deleted rows are written again
        materialize_deletions=True,
        materialize_deletions_threshold=0.0,
        batch_size=256,
    )
    table.checkout_latest()
    rebuild_words(table)
    table.checkout_latest()
    table.to_lance().cleanup_old_versions(
        older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
    )
    table.checkout_latest()


def remove_history(table: Any, before: datetime) -> int:
    """Removes rows that were superseded, deleted or expired before a moment (aware); gives their number.

    Their bytes go with the next compaction and clean-up. A delete's guard goes with its document: whoever replays
    records that are older than the history kept brings them back.
    """
    where = ended_before(before)
    removed = int(table.count_rows(where))
    if removed:
        table.delete(where)
    return removed
