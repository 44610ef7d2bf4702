"""BM25 scores of a bank's rows for a question, from LanceDB's full-text index and from the rows that it does not cover yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lancedb.query import MatchQuery

from services.bank.full_text_index import indexed_words, words_column
from services.bank.index_state import IndexState

__all__ = ["TAIL_ROWS", "word_scores"]

TAIL_ROWS = 512
"""Unindexed rows that a search still reads: a tenth of a millisecond each, for stemming."""


def word_scores(
    table: Any, text: str, where: str, pool: int, near: Sequence[int], state: IndexState
) -> dict[int, float]:
    """{row id: BM25} of the `pool` best visible rows by words, and of those of `near` that share a word with the text.

    `near` are visible rows that were found by key. A short unindexed tail is searched as a whole. Of a long one, which is
    there while ingest runs faster than the index can be built, only rows of `near` are scored.
    """
    asked, fast = indexed_words(text), state.full_text_tail_rows > TAIL_ROWS
    if fast and not state.words_rows:
        scores: dict[int, float] = {}
    elif state.has_keys and len(best := _best_visible(table, asked, where, pool, fast)) >= pool // 4:
        scores, fast = best, True
    else:
        scores = _matches(table, asked, where, pool, fast=fast)
    complete = not fast and len(scores) < pool  # every visible row with a word of the text is among them
    missing = [row for row in near if row not in scores]
    if missing and not complete:
        among = f"_rowid IN ({', '.join(str(row) for row in missing)})"
        scores |= _matches(table, asked, among, len(missing), fast=False)
    return scores


def _best_visible(table: Any, asked: str, where: str, pool: int, fast: bool) -> dict[int, float]:
    """Those of the best rows that are visible, at most `pool`: filtering a large bank's rows first takes longer."""
    found = _matches(table, asked, where, 4 * pool, fast=fast, prefilter=False)
    best = sorted(found, key=lambda row: (-found[row], row))[:pool]
    return {row: found[row] for row in best}


def _matches(table: Any, asked: str, where: str, limit: int, *, fast: bool, prefilter: bool = True) -> dict[int, float]:
    query = table.search(MatchQuery(asked, words_column(table)), query_type="fts").where(where, prefilter=prefilter)
    if fast:
        query = query.fast_search()
    rows = query.select(["_score"]).with_row_id(True).limit(limit).to_arrow()
    return dict(zip(rows["_rowid"].to_pylist(), rows["_score"].to_pylist(), strict=True))
