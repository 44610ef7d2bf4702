"""Finds what the bank holds for questions: keys, search, the best score over a question's lookups, the relevance threshold."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence

from services.bank.records import BankStats, Hit
from services.metrics import Metrics
from services.query.engine.grouping import in_groups, isolated
from services.query.engine.messages import Ask, Failure, HitList
from services.query.engine.ports import AnsweringModel, MemoryReader

__all__ = ["Retrieval"]


class Retrieval:
    """Looks questions up; questions of the same options share one search. Thread-safe."""

    def __init__(
        self,
        model: AnsweringModel,
        bank: MemoryReader,
        *,
        top_k: int | None,
        min_score: float | None,
        every_chunk: bool,
        metrics: Metrics,
    ) -> None:
        self._model = model
        self._bank = bank
        self._top_k = top_k or model.default_top_k
        self._min_score = model.min_score if min_score is None else min_score
        self._every_chunk = every_chunk
        self._metrics = metrics
        self._encoding = threading.Lock()  # a tokenizer must not be used by two threads at once

    def find(self, asks: Sequence[Ask], *, relevant_only: bool = True) -> list[HitList | Failure]:
        """What the bank holds for each question now; a question that can't be looked up fails alone."""

        def run(group: Sequence[Ask]) -> list[HitList]:
            return self._search(group, relevant_only)

        return in_groups(asks, self._options, lambda group: isolated(group, run))

    def _options(self, ask: Ask) -> Hashable:
        return ask.mode != "closed" and (ask.top_k or self._top_k, ask.namespace, ask.as_of, ask.wanted)

    def _search(self, asks: Sequence[Ask], relevant_only: bool) -> list[HitList]:
        first = asks[0]
        if first.mode == "closed":
            return [HitList() for _ in asks]
        started = time.perf_counter()
        texts = [ask.lookups or (ask.question,) for ask in asks]
        flat = [text for own in texts for text in own]
        with self._encoding:
            keys = self._model.query_keys(flat)  # (lookups, d_key)
        k = first.top_k or self._top_k
        stats = self._bank.stats()
        found = self._bank.search(
            keys, k, first.namespace, first.as_of, first.wanted, texts=flat, every_chunk=self._every_chunk
        )
        rows = iter(found)
        hits = [_best([hit for _ in own for hit in next(rows)], k, self._every_chunk) for own in texts]
        seconds = time.perf_counter() - started
        self._metrics.observe("cmt_query_retrieve_seconds", seconds)
        return [self._found(ask, own, stats, seconds * 1e3, relevant_only) for ask, own in zip(asks, hits, strict=True)]

    def _found(self, ask: Ask, hits: Sequence[Hit], stats: BankStats, took_ms: float, relevant_only: bool) -> HitList:
        least = self._min_score if ask.min_score is None else ask.min_score
        kept = tuple(hit for hit in hits if hit.score >= least or not relevant_only)
        best = max((float(hit.score) for hit in hits), default=None)
        return HitList(kept, stats.version, took_ms, best, least, stats.first_ingested_at)


def _best(hits: Sequence[Hit], k: int, every_chunk: bool) -> list[Hit]:
    """The k best of several lookups' hits, each document or window once, by its best rank."""
    unique: dict[tuple[str, int], Hit] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.rank, hit.doc_id, hit.chunk_no)):
        unique.setdefault((hit.doc_id, hit.chunk_no if every_chunk else 0), hit)
    return list(unique.values())[:k]
