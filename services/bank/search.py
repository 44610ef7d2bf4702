"""Finds the best memories of a bank's table: candidates by key and by words, ranked together, payload for the winners only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cmt_core.retrieval.ranking import CANDIDATES, Ranking
from services.bank.full_text_search import word_scores
from services.bank.index_state import IndexState
from services.bank.records import Hit
from services.bank.schema import BankLayout

__all__ = ["Request", "search_table"]

_Matrix = npt.NDArray[np.float32]

_HIT_COLUMNS = [
    *("namespace", "doc_id", "chunk_no", "title", "url", "source", "text"),
    *("published_at", "ingested_at", "n_tokens", "memory", "metadata"),
]
_NO_TOKENS: _Matrix = np.zeros((0, 0), dtype=np.float32)
_PROBES = 32  # partitions of the vector index that a search looks into
_REFINE = 4  # quantised distances are exact again for so many times the rows asked for


@dataclass(frozen=True, slots=True)
class Request:
    """B questions of the same options: keys (B, d_key), their texts where words count, and which rows may be found.

    `tokens` are each question's token vectors (Q, D); without them those of the rows don't count.
    """

    keys: _Matrix
    texts: Sequence[str]
    tokens: Sequence[_Matrix]
    k: int
    where: str
    ranking: Ranking
    every_chunk: bool


def search_table(table: Any, request: Request, state: IndexState) -> list[list[Hit]]:
    """The k best hits of every question, best first.

    Where chunks of one document count once, the candidates are widened until k documents are found or all rows were seen.
    """
    words = request.ranking.reads_words and bool(request.texts)
    pool = max(request.k, CANDIDATES) if words or not request.every_chunk else request.k
    while True:
        candidates = _nearest(table, request, pool, state)
        scored = _scored(table, request, candidates, pool, state) if words else None
        chosen = _chosen(table, request, candidates, scored)
        enough = all(len(rows) >= request.k or len(near) < pool for rows, near in zip(chosen, candidates, strict=True))
        if enough:
            return _hits(table, chosen)
        pool *= 4


@dataclass(frozen=True, slots=True)
class _Place:
    """A row that was chosen, with the cosine of its key and its ranking score."""

    row_id: int
    cosine: float
    rank: float


def _scored(
    table: Any, request: Request, candidates: list[list[int]], pool: int, state: IndexState
) -> list[dict[int, float]]:
    """BM25 of the candidates of each question {row id: score}, with those that only words have found."""
    return [
        word_scores(table, text, request.where, pool, near, state)
        for text, near in zip(request.texts, candidates, strict=True)
    ]


def _chosen(
    table: Any, request: Request, candidates: list[list[int]], scored: list[dict[int, float]] | None
) -> list[list[_Place]]:
    words: list[dict[int, float]] = scored if scored is not None else [{} for _ in candidates]
    wanted = sorted({row for near, own in zip(candidates, words, strict=True) for row in (*near, *own)})
    if not wanted:
        return [[] for _ in candidates]
    rows = table.take_row_ids(wanted).select(["doc_id", "chunk_no", "key"]).with_row_id().to_arrow()
    ids = rows["_rowid"].to_pylist()
    names = dict(zip(ids, zip(rows["doc_id"].to_pylist(), rows["chunk_no"].to_pylist(), strict=True), strict=True))
    keys = dict(zip(ids, _unit(_matrix(rows["key"])), strict=True))
    cosines = [
        {row: float(keys[row] @ query) for row in dict.fromkeys((*near, *own))}
        for query, near, own in zip(_unit(request.keys), candidates, words, strict=True)
    ]
    ranks = [request.ranking.combined(near, own) for near, own in zip(cosines, words, strict=True)]
    orders = [request.ranking.order(own, names) for own in ranks]
    if scored is not None and (request.ranking.reads_texts or request.ranking.reads_tokens):
        ranks = _looked_at(table, request, ranks, orders)
        orders = [request.ranking.order(own, names) for own in ranks]
    if not request.every_chunk:
        orders = [request.ranking.one_a_document(order, names) for order in orders]
    return [
        [_Place(row, near[row], own[row]) for row in order[: request.k]]
        for order, near, own in zip(orders, cosines, ranks, strict=True)
    ]


def _looked_at(
    table: Any, request: Request, ranks: list[dict[int, float]], orders: list[list[int]]
) -> list[dict[int, float]]:
    """The ranks with what a look at each question's first rows adds."""
    firsts = [request.ranking.first(order) for order in orders]
    wanted = sorted({row for first in firsts for row in first})
    columns = ["title", "text"]
    if request.tokens and request.ranking.reads_tokens and "tokens" in table.schema.names:  # not before version 7
        columns.append("tokens")
    rows = table.take_row_ids(wanted).select(columns).with_row_id().to_arrow().to_pylist()
    texts = {row["_rowid"]: "\n".join(filter(None, (row["title"], row["text"]))) for row in rows}
    tokens = {row["_rowid"]: row.get("tokens") or b"" for row in rows}
    asked = request.tokens or [_NO_TOKENS] * len(request.texts)
    return [
        request.ranking.looked_at(question, own_tokens, own, {row: texts[row] for row in first}, tokens)
        for question, own_tokens, own, first in zip(request.texts, asked, ranks, firsts, strict=True)
    ]


def _hits(table: Any, chosen: list[list[_Place]]) -> list[list[Hit]]:
    row_ids = sorted({place.row_id for places in chosen for place in places})
    if not row_ids:
        return [[] for _ in chosen]
    columns = [name for name in _HIT_COLUMNS if name in table.schema.names]  # banks before version 6 have no metadata
    rows = table.take_row_ids(row_ids).select(columns).with_row_id().to_arrow()
    by_id = dict(zip(rows["_rowid"].to_pylist(), rows.drop_columns(["_rowid"]).to_pylist(), strict=True))
    memory_bytes = BankLayout.from_schema(table.schema).memory_bytes
    for row in by_id.values():
        row["memory"] = row["memory"].ljust(memory_bytes, b"\0")
        row["metadata"] = json.loads(row.get("metadata") or "null")
    return [[Hit(**by_id[one.row_id], score=one.cosine, rank=one.rank) for one in places] for places in chosen]


def _nearest(table: Any, request: Request, pool: int, state: IndexState) -> list[list[int]]:
    """Row ids of the `pool` nearest visible keys of each question; fewer when there are no more.

    Most rows of a bank are visible to most questions, so that the nearest of all rows are looked up first and then
    filtered; only where too few are left are all rows filtered first. The result is the same set, cut at another depth.
    """
    if state.has_keys:
        found = _neighbours(table, request, pool, state, prefilter=False)
        if all(len(rows) >= max(request.k, pool // 8) for rows in found):
            return found
    return _neighbours(table, request, pool, state, prefilter=True)


def _neighbours(table: Any, request: Request, pool: int, state: IndexState, *, prefilter: bool) -> list[list[int]]:
    query = table.search(list(request.keys), vector_column_name="key").distance_type("cosine")
    query = query.where(request.where, prefilter=prefilter)
    query = query.nprobes(_PROBES).refine_factor(_REFINE) if state.has_keys else query.bypass_vector_index()
    rows = query.select(["_distance"]).with_row_id(True).limit(pool).to_arrow()
    # a single query gives no query_index column
    numbers = rows["query_index"].to_pylist() if "query_index" in rows.column_names else [0] * rows.num_rows
    found: list[list[int]] = [[] for _ in request.keys]
    for number, row_id in zip(numbers, rows["_rowid"].to_pylist(), strict=True):
        found[number].append(row_id)
    return found


def _matrix(column: pa.ChunkedArray) -> _Matrix:
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32).reshape(len(column), -1)


def _unit(vectors: _Matrix) -> _Matrix:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / norms, dtype=np.float32)
