"""Turns metric snapshots of the ingest processes into the few numbers that the page shows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from services.metrics import TABLE, Snapshot
from services.query.gateway.stream_look import StreamView

__all__ = ["IngestNumbers", "IngestView", "from_elsewhere", "total"]


@dataclass(frozen=True, slots=True)
class IngestView:
    """Ingest at a glance; None is what is not known: no ingest process has said so here, nor could Kafka be asked.

    `running` None: no ingest reports here, which says nothing of those that run elsewhere.
    """

    records: int | None
    dead_letters: int | None
    windows: int | None
    records_per_s: float | None
    lag_records: int | None
    freshness_s: float | None
    running: bool | None

    def as_dict(self) -> dict[str, float | int | bool | None]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    records: float
    fresh_sum_s: float
    fresh_count: int


class IngestNumbers:
    """Keeps samples of the last `window_s` seconds, so that rates and freshness are of now and not of the whole run."""

    def __init__(self, window_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._samples: deque[_Sample] = deque()
        self._freshness_s: float | None = None

    def update(self, snapshots: Sequence[Snapshot]) -> IngestView:
        """Takes a sample and gives the numbers of now."""
        now = self._clock()
        fresh_count, fresh_sum_s = _histogram(snapshots, "cmt_ingest_freshness_seconds")
        sample = _Sample(now, total(snapshots, "cmt_ingest_records_total"), fresh_sum_s, fresh_count)
        if self._samples and sample.records < self._samples[-1].records:
            self._samples.clear()  # an ingest process was restarted and counts from zero again
        self._samples.append(sample)
        while len(self._samples) > 2 and now - self._samples[1].at >= self._window_s:
            self._samples.popleft()
        first = self._samples[0]
        self._freshness_s = _mean_since(first, sample, self._freshness_s)
        elapsed_s = now - first.at
        return IngestView(
            records=int(sample.records),
            dead_letters=int(total(snapshots, "cmt_ingest_dead_letters_total")),
            windows=int(total(snapshots, "cmt_ingest_windows_total")),
            records_per_s=round((sample.records - first.records) / elapsed_s, 2) if elapsed_s > 0 else 0.0,
            lag_records=_gauge(snapshots, "cmt_ingest_lag_records"),
            freshness_s=self._freshness_s,
            running=any("cmt_ingest_in_flight_bytes" in one.numbers or _lag(one) for one in snapshots),
        )


def from_elsewhere(stream: StreamView | None, rate: float | None, freshness_s: float | None) -> IngestView:
    """The view of an ingest that reports nothing here, as Kafka and the bank have it."""
    return IngestView(
        records=None,
        dead_letters=None if stream is None else stream.dead_letters,
        windows=None,
        records_per_s=rate,
        lag_records=None if stream is None else stream.lag_records,
        freshness_s=freshness_s,
        running=None,
    )


def total(snapshots: Iterable[Snapshot], name: str, **labels: str) -> float:
    """Sum of a counter over processes and over the labels that are not given."""
    wanted = [(TABLE[name].labels.index(label), value) for label, value in labels.items()]
    return sum(
        value
        for snapshot in snapshots
        for key, value in snapshot.numbers.get(name, {}).items()
        if all(key[i] == label for i, label in wanted)
    )


def _lag(snapshot: Snapshot) -> bool:
    return "cmt_ingest_lag_records" in snapshot.numbers


def _gauge(snapshots: Sequence[Snapshot], name: str) -> int | None:
    """Sum over label values, where a later process's value of the same series replaces an earlier one's."""
    series: dict[tuple[str, ...], float] = {}
    for snapshot in snapshots:
        series.update(snapshot.numbers.get(name, {}))
    return int(sum(series.values())) if series else None


def _histogram(snapshots: Sequence[Snapshot], name: str) -> tuple[int, float]:
    parts = [part for snapshot in snapshots for part in snapshot.histograms.get(name, {}).values()]
    return sum(sum(counts) for counts, _ in parts), sum(total_s for _, total_s in parts)


def _mean_since(first: _Sample, last: _Sample, before: float | None) -> float | None:
    count = last.fresh_count - first.fresh_count
    if count > 0:
        return round((last.fresh_sum_s - first.fresh_sum_s) / count, 3)
    if before is None and last.fresh_count > 0:
        return round(last.fresh_sum_s / last.fresh_count, 3)
    return before
