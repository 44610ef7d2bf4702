"""Finds what the bank holds for questions: keys, search, the best score over a question's lookups, the relevance threshold.

Where a question says when ("latest", "yesterday", "on 12 November"), documents of that time rank higher; none is left out for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cmt_core.retrieval.complement import completed_by
from cmt_core.retrieval.evidence import relevant
from services.bank.records import BankStats, Hit
from services.metrics import Metrics
from services.query.engine.grouping import in_groups, isolated
from services.query.engine.messages import Ask, Failure, HitList
from services.query.engine.ports import BankModel, MemoryReader
from services.query.engine.time_words import TimeWish, time_wish

__all__ = ["Retrieval"]

_TIMED_POOL = 16  # documents among which those of a time are looked for


class Retrieval:
    """Looks questions up; questions of the same options share one search. Thread-safe."""

    def __init__(
        self,
        model: BankModel,
        bank: MemoryReader,
        *,
        top_k: int | None,
        min_score: float | None,
        every_chunk: bool,
        metrics: Metrics,
        min_evidence: float = 0.0,
        time_weight: float = 0.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`min_evidence` is that of cmt_core/retrieval/evidence.py, `time_weight` what a document of the time that a question
        names adds to its rank, by `clock` (aware).
        """
        self._model = model
        self._bank = bank
        self._top_k = top_k or model.default_top_k
        self._min_score = model.min_score if min_score is None else min_score
        self._every_chunk = every_chunk
        self._metrics = metrics
        self._min_evidence = min_evidence
        self._time_weight, self._clock = time_weight, clock
        self._encoding = threading.Lock()  # a tokenizer must not be used by two threads at once

    def find(self, asks: Sequence[Ask], *, relevant_only: bool = True) -> list[HitList | Failure]:
        """What the bank holds for each question now; a question that can't be looked up fails alone."""

        def run(group: Sequence[Ask]) -> list[HitList]:
            return self._search(group, relevant_only)

        return in_groups(asks, self._options, lambda group: isolated(group, run))

    def _options(self, ask: Ask) -> Hashable:
        timed = self._wish(ask) is not None
        of_mode = ask.mode if ask.mode in ("closed", "rag") else "memory"  # what is found for it, and how much
        return of_mode != "closed" and (of_mode, ask.top_k or self._top_k, ask.namespace, ask.as_of, ask.wanted, timed)

    def _wish(self, ask: Ask) -> TimeWish | None:
        return time_wish(ask.question, ask.as_of or self._clock()) if self._time_weight else None

    def _search(self, asks: Sequence[Ask], relevant_only: bool) -> list[HitList]:
        first = asks[0]
        if first.mode == "closed":
            return [HitList() for _ in asks]
        started = time.perf_counter()
        texts = [ask.lookups or (ask.question,) for ask in asks]
        flat = [text for own in texts for text in own]
        with self._encoding:
            keys = self._model.query_keys(flat)
        k = first.top_k or self._top_k
        looked_at = self._model.looked_at(k) if relevant_only and first.mode != "rag" else k
        stats = self._bank.stats()
        timed = self._wish(first) is not None
        pool = max(looked_at, _TIMED_POOL) if timed else looked_at
        found = self._bank.search(
            keys.vectors,
            pool,
            first.namespace,
            first.as_of,
            first.wanted,
            texts=flat,
            tokens=keys.tokens,
            every_chunk=self._every_chunk,
        )
        rows = iter(found)
        hits = [_best([hit for _ in own for hit in next(rows)], pool, self._every_chunk) for own in texts]
        if timed:
            hits = [self._in_time(ask, own)[:looked_at] for ask, own in zip(asks, hits, strict=True)]
        seconds = time.perf_counter() - started
        self._metrics.observe("cmt_query_retrieve_seconds", seconds)
        found_of = [
            self._found(ask, own, stats, seconds * 1e3, relevant_only) for ask, own in zip(asks, hits, strict=True)
        ]
        return [replace(one, sources=k) for one in found_of]

    def _in_time(self, ask: Ask, hits: Sequence[Hit]) -> list[Hit]:
        """The hits, best first, with the weight of their times in their ranks."""
        if (wish := self._wish(ask)) is None:
            return list(hits)
        newest = max((hit.published_at for hit in hits if hit.published_at is not None), default=None)
        timed = [replace(hit, rank=hit.rank + self._time_weight * wish.share(hit.published_at, newest)) for hit in hits]
        return sorted(timed, key=lambda hit: (-hit.rank, hit.doc_id, hit.chunk_no))

    def _found(self, ask: Ask, hits: Sequence[Hit], stats: BankStats, took_ms: float, relevant_only: bool) -> HitList:
        fit = self._relevant(ask, hits)
        kept = [(hit, fits) for hit, fits in zip(hits, fit, strict=True) if fits or not relevant_only]
        best = max((float(hit.score) for hit in hits), default=None)
        shown, flags = tuple(hit for hit, _ in kept), tuple(fits for _, fits in kept)
        others = completed_by(ask.question, [hit.passage for hit in shown])
        return HitList(shown, stats.version, took_ms, best, flags, tuple(others), stats.first_ingested_at)

    def _relevant(self, ask: Ask, hits: Sequence[Hit]) -> list[bool]:
        """By the service's evidence; where a request names a least score, by the cosine alone."""
        cosines = [float(hit.score) for hit in hits]
        if ask.min_score is not None:
            return [cosine >= ask.min_score for cosine in cosines]
        texts = [hit.passage for hit in hits]
        return relevant(ask.lookups or (ask.question,), texts, cosines, self._min_score, self._min_evidence)


def _best(hits: Sequence[Hit], k: int, every_chunk: bool) -> list[Hit]:
    """The k best of several lookups' hits, each document or window once, by its best rank."""
    unique: dict[tuple[str, int], Hit] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.rank, hit.doc_id, hit.chunk_no)):
        unique.setdefault((hit.doc_id, hit.chunk_no if every_chunk else 0), hit)
    return list(unique.values())[:k]
