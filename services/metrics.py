"""Every metric of the system, defined once in `TABLE`, and the one way to write them.

A process writes to its own `Metrics`; actors send `snapshot()` to the gateway, which shows all of them on /metrics
(`render`). Names carry their unit; counters end in `_total`. Never prometheus-client's multiprocess files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["TABLE", "MetricSpec", "Metrics", "Snapshot", "render", "samples"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: kind, help line, label names, and bucket bounds when it is a histogram."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = _SECONDS


TABLE: Mapping[str, MetricSpec] = {
    "cmt_ingest_records_total": MetricSpec("counter", "Kafka records taken, by outcome.", ("outcome",)),
    "cmt_ingest_dead_letters_total": MetricSpec("counter", "Records sent to the dead-letter topic.", ("reason",)),
    "cmt_ingest_left_out_fields_total": MetricSpec(
        "counter",
        "Optional fields that could not be understood and were left out of their documents; `key`: not the document's id.",
        ("field",),
    ),
    "cmt_ingest_windows_total": MetricSpec("counter", "Document windows compressed into memories."),
    "cmt_ingest_tokens_total": MetricSpec("counter", "LLM tokens read by the compressor."),
    "cmt_ingest_retries_total": MetricSpec("counter", "Calls to Kafka, a compressor or the bank that were repeated."),
    "cmt_ingest_oldest_uncommitted_seconds": MetricSpec(
        "gauge", "Age of the oldest record that was polled and is not finished.", ("partition",)
    ),
    "cmt_ingest_stopped_partitions": MetricSpec("gauge", "Partitions that wait for the dead-letter topic."),
    "cmt_ingest_stage_seconds": MetricSpec("histogram", "Seconds of a stage beside the model itself.", ("stage",)),
    "cmt_ingest_batch_tokens": MetricSpec(
        "histogram", "Tokens in a batch.", (), (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    ),
    "cmt_ingest_batch_fill_ratio": MetricSpec(
        "histogram", "Share of a batch that is not padding.", (), (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    ),
    "cmt_ingest_published_freshness_seconds": MetricSpec(
        "histogram",
        "Seconds from a document's publication to the bank commit that makes it answerable.",
        (),
        (1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400),
    ),
    "cmt_pool_compressors": MetricSpec("gauge", "Compressor actors that take work."),
    "cmt_pool_consumers": MetricSpec("gauge", "Consumer actors that answer."),
    "cmt_pool_reassignments_total": MetricSpec("counter", "Times that a consumer was given other partitions."),
    "cmt_ingest_lag_records": MetricSpec("gauge", "Records between committed and end offset.", ("partition",)),
    "cmt_ingest_in_flight_bytes": MetricSpec("gauge", "Bytes of records polled and not yet committed."),
    "cmt_ingest_batch_windows": MetricSpec("histogram", "Windows in a batch.", (), (1, 2, 4, 8, 16, 32, 64, 128)),
    "cmt_ingest_compress_seconds": MetricSpec("histogram", "Seconds to compress a batch."),
    "cmt_ingest_freshness_seconds": MetricSpec(
        "histogram", "Seconds from a record's Kafka timestamp to the bank commit that makes it answerable."
    ),
    "cmt_bank_commit_seconds": MetricSpec("histogram", "Seconds of a bank commit."),
    "cmt_bank_rows": MetricSpec("gauge", "Rows of the bank, closed ones included."),
    "cmt_bank_documents": MetricSpec("gauge", "Documents that are live in the bank."),
    "cmt_bank_fragments": MetricSpec("gauge", "Fragments of the bank's table."),
    "cmt_bank_version": MetricSpec("gauge", "Latest version of the bank."),
    "cmt_bank_bytes": MetricSpec("gauge", "Bytes of the latest version's data."),
    "cmt_bank_unindexed_rows": MetricSpec("gauge", "Rows that an index of the bank does not cover yet.", ("index",)),
    "cmt_bank_index_seconds": MetricSpec("histogram", "Seconds to bring the bank's indexes up to date."),
    "cmt_bank_maintenance_seconds": MetricSpec("histogram", "Seconds of a compaction, for which commits wait."),
    "cmt_bank_compacted_fragments_total": MetricSpec("counter", "Fragments that compaction merged away."),
    "cmt_bank_removed_versions_total": MetricSpec("counter", "Old versions of the bank's table that were removed."),
    "cmt_bank_removed_bytes_total": MetricSpec("counter", "Bytes that the removal of old versions gave back."),
    "cmt_feed_items_total": MetricSpec("counter", "Feed items read, by outcome.", ("outcome",)),
    "cmt_feed_errors_total": MetricSpec("counter", "Feeds that could not be read and were skipped."),
    "cmt_thread_stalled_seconds": MetricSpec(
        "gauge", "How long a thread has been at one piece of work, when that is too long; else 0.", ("thread",)
    ),
    "cmt_thread_failures_total": MetricSpec(
        "counter", "Failures of a service's own threads, each of which ended a round of its work.", ("thread",)
    ),
    "cmt_query_requests_total": MetricSpec("counter", "Questions, by model and HTTP status.", ("model", "status")),
    "cmt_query_seconds": MetricSpec("histogram", "Seconds from request to answer.", ("model",)),
    "cmt_query_retrieve_seconds": MetricSpec("histogram", "Seconds to find the top-k memories of a question."),
    "cmt_query_first_token_seconds": MetricSpec("histogram", "Seconds from question to first token.", ("mode",)),
    "cmt_query_generate_seconds": MetricSpec("histogram", "Seconds from an answer's first token to its last."),
    "cmt_query_batch_questions": MetricSpec("histogram", "Questions running when one joins.", (), (1, 2, 4, 8, 16, 32)),
    "cmt_query_prompt_tokens_total": MetricSpec("counter", "Prompt tokens given to the LLM.", ("mode",)),
    "cmt_query_completion_tokens_total": MetricSpec("counter", "Tokens generated.", ("mode",)),
    "cmt_query_running": MetricSpec("gauge", "Answers being written."),
    "cmt_query_cancelled_total": MetricSpec("counter", "Questions whose client went away."),
    "cmt_query_unknown_total": MetricSpec("counter", "Questions for which nothing relevant was found."),
    "cmt_query_text_reads_total": MetricSpec(
        "counter", "Questions of mode auto that were read from text: it took two sources, or the answer stood in none."
    ),
    "cmt_query_event_listeners": MetricSpec("gauge", "Open connections to /v1/events."),
    "cmt_query_queued": MetricSpec("gauge", "Questions waiting for or in generation."),
}

Labels = tuple[str, ...]


@dataclass(slots=True)
class _Histogram:
    counts: list[int]
    total: float = 0.0


@dataclass(slots=True)
class Snapshot:
    """Values of one process: {name: {label values: number}} and histograms as cumulative-free bucket counts."""

    numbers: dict[str, dict[Labels, float]] = field(default_factory=dict)
    histograms: dict[str, dict[Labels, tuple[list[int], float]]] = field(default_factory=dict)


class Metrics:
    """Thread-safe metric values of one process; unknown names and wrong labels raise KeyError at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Adds to a counter."""
        key = self._key(name, "counter", labels)
        with self._lock:
            series = self._numbers.setdefault(name, {})
            series[key] = series.get(key, 0.0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        key = self._key(name, "gauge", labels)
        with self._lock:
            self._numbers.setdefault(name, {})[key] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds one observation to a histogram."""
        key = self._key(name, "histogram", labels)
        bounds = TABLE[name].buckets
        with self._lock:
            series = self._histograms.setdefault(name, {})
            histogram = series.setdefault(key, _Histogram([0] * (len(bounds) + 1)))
            bucket = next((i for i, bound in enumerate(bounds) if value <= bound), len(bounds))
            histogram.counts[bucket] += 1
            histogram.total += value

    def snapshot(self) -> Snapshot:
        """A copy that can travel to another process."""
        with self._lock:
            return Snapshot(
                {name: dict(series) for name, series in self._numbers.items()},
                {
                    name: {key: (list(histogram.counts), histogram.total) for key, histogram in series.items()}
                    for name, series in self._histograms.items()
                },
            )

    @staticmethod
    def _key(name: str, kind: str, labels: Mapping[str, str]) -> Labels:
        spec = TABLE[name]
        if spec.kind != kind or set(labels) != set(spec.labels):
            raise KeyError(f"{name} is a {spec.kind} with labels {spec.labels}, not a {kind} with {tuple(labels)}")
        return tuple(labels[label] for label in spec.labels)


def render(snapshots: Iterable[Snapshot]) -> bytes:
    """The Prometheus text page of several processes: counters and histograms add up, of a gauge the last one wins."""
    registry = CollectorRegistry()
    registry.register(_Merged(list(snapshots)))
    return generate_latest(registry)


def samples(snapshots: Iterable[Snapshot]) -> Iterable[tuple[str, dict[str, str], float]]:
    """The same as (name, labels, value), histograms as their `_bucket`, `_count` and `_sum` series."""
    for metric in _Merged(list(snapshots)).collect():
        for sample in metric.samples:
            yield sample.name, sample.labels, float(sample.value)


class _Merged(Collector):
    def __init__(self, snapshots: list[Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterable[Metric]:
        for name, spec in TABLE.items():
            yield self._histogram(name, spec) if spec.kind == "histogram" else self._number(name, spec)

    def _number(self, name: str, spec: MetricSpec) -> Metric:
        merged: dict[Labels, float] = {}
        for snapshot in self._snapshots:
            for key, value in snapshot.numbers.get(name, {}).items():
                merged[key] = merged.get(key, 0.0) + value if spec.kind == "counter" else value
        family: CounterMetricFamily | GaugeMetricFamily
        if spec.kind == "counter":
            family = CounterMetricFamily(name, spec.help, labels=spec.labels)
        else:
            family = GaugeMetricFamily(name, spec.help, labels=spec.labels)
        for key, value in merged.items():
            family.add_metric(key, value)
        return family

    def _histogram(self, name: str, spec: MetricSpec) -> Metric:
        family = HistogramMetricFamily(name, spec.help, labels=spec.labels)
        merged: dict[Labels, tuple[list[int], float]] = {}
        for snapshot in self._snapshots:
            for key, (counts, total) in snapshot.histograms.get(name, {}).items():
                old, old_total = merged.get(key, ([0] * len(counts), 0.0))
                merged[key] = ([a + b for a, b in zip(old, counts, strict=True)], old_total + total)
        bounds = [str(float(bound)) for bound in spec.buckets] + ["+Inf"]
        for key, (counts, total) in merged.items():
            cumulative, buckets = 0, []
            for bound, count in zip(bounds, counts, strict=True):
                cumulative += count
                buckets.append((bound, float(cumulative)))
            family.add_metric(key, buckets, total)
        return family
