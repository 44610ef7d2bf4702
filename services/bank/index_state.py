"""What the indexes of a bank's table cover: the full-text index, the vector index (nearest neighbours),
and the documents index (ids, for the writer)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DOCUMENTS_INDEX", "FULL_TEXT_INDEX", "VECTOR_INDEX", "IndexState", "index_state"]

FULL_TEXT_INDEX = "text_idx"
VECTOR_INDEX = "key_idx"
DOCUMENTS_INDEX = "doc_id_idx"


@dataclass(frozen=True, slots=True)
class IndexState:
    """Rows of the table inside and outside of each index; a missing index covers nothing."""

    words_rows: int
    full_text_tail_rows: int
    keys_rows: int
    vector_tail_rows: int
    has_words: bool
    has_keys: bool
    has_documents: bool


def index_state(table: Any) -> IndexState:
    """The state of one table version; from metadata, no rows are read."""
    found = {one.name: one for one in table.list_indices()}
    words, keys = found.get(FULL_TEXT_INDEX), found.get(VECTOR_INDEX)
    rows = table.count_rows() if words is None or keys is None else 0
    return IndexState(
        words_rows=words.num_indexed_rows if words else 0,
        full_text_tail_rows=words.num_unindexed_rows if words else rows,
        keys_rows=keys.num_indexed_rows if keys else 0,
        vector_tail_rows=keys.num_unindexed_rows if keys else rows,
        has_words=words is not None,
        has_keys=keys is not None,
        has_documents=DOCUMENTS_INDEX in found,
    )
