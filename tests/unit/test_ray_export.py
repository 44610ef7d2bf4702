"""What the metrics hub hands to Ray: every series with its value, and NaN for one that is gone."""

from __future__ import annotations

import math

from services.metrics import Metrics
from services.ray_export import RayExport


class Notes:
    """Takes what Ray's gauges would: the last value of every series."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def __call__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> NotedGauge:
        return NotedGauge(self, name)


class NotedGauge:
    def __init__(self, notes: Notes, name: str) -> None:
        self._notes, self._name = notes, name

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._notes.values[self._name, tuple(sorted(tags.items()))] = value


def test_counters_and_histograms_keep_their_values() -> None:
    notes, metrics = Notes(), Metrics()
    metrics.count("cmt_ingest_records_total", 7, outcome="written")
    metrics.observe("cmt_bank_commit_seconds", 0.2)
    metrics.observe("cmt_bank_commit_seconds", 0.4)
    RayExport(notes).send([metrics.snapshot()])
    assert notes.values["cmt_ingest_records_total", (("outcome", "written"),)] == 7
    assert notes.values["cmt_bank_commit_seconds_bucket", (("le", "0.25"),)] == 1
    assert notes.values["cmt_bank_commit_seconds_bucket", (("le", "+Inf"),)] == 2
    assert notes.values["cmt_bank_commit_seconds_count", ()] == 2
    assert math.isclose(notes.values["cmt_bank_commit_seconds_sum", ()], 0.6)


def test_a_series_that_is_gone_becomes_nan_once_and_may_come_back() -> None:
    notes = Notes()
    export, both, one = RayExport(notes), Metrics(), Metrics()
    both.gauge("cmt_ingest_lag_records", 5, partition="0")
    both.gauge("cmt_ingest_lag_records", 3, partition="1")
    one.gauge("cmt_ingest_lag_records", 2, partition="1")
    gone = ("cmt_ingest_lag_records", (("partition", "0"),))
    export.send([both.snapshot()])
    export.send([one.snapshot()])
    assert math.isnan(notes.values[gone])
    assert notes.values["cmt_ingest_lag_records", (("partition", "1"),)] == 2
    export.send([both.snapshot()])
    assert notes.values[gone] == 5
