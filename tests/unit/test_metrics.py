"""Metrics: one table, strict names, and sums over processes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics import TABLE, Metrics, MetricSpec, render


def _values(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_counters_and_histograms_of_processes_add_up() -> None:
    one, two = Metrics(), Metrics()
    one.count("cmt_ingest_windows_total", 3)
    two.count("cmt_ingest_windows_total", 4)
    one.observe("cmt_bank_commit_seconds", 0.02)
    two.observe("cmt_bank_commit_seconds", 7.0)
    values = _values(render([one.snapshot(), two.snapshot()]))
    assert values[("cmt_ingest_windows_total", ())] == 7
    assert values[("cmt_bank_commit_seconds_count", ())] == 2
    assert values[("cmt_bank_commit_seconds_sum", ())] == pytest.approx(7.02)
    assert values[("cmt_bank_commit_seconds_bucket", (("le", "0.025"),))] == 1
    assert values[("cmt_bank_commit_seconds_bucket", (("le", "+Inf"),))] == 2


def test_last_process_wins_a_gauge() -> None:
    one, two = Metrics(), Metrics()
    one.gauge("cmt_bank_rows", 10)
    two.gauge("cmt_bank_rows", 12)
    assert _values(render([one.snapshot(), two.snapshot()]))[("cmt_bank_rows", ())] == 12


def test_labelled_series_stay_apart() -> None:
    metrics = Metrics()
    metrics.count("cmt_ingest_dead_letters_total", reason="schema")
    metrics.count("cmt_ingest_dead_letters_total", 2, reason="not_json")
    values = _values(render([metrics.snapshot()]))
    assert values[("cmt_ingest_dead_letters_total", (("reason", "schema"),))] == 1
    assert values[("cmt_ingest_dead_letters_total", (("reason", "not_json"),))] == 2


@pytest.mark.parametrize(
    "write",
    [
        lambda m: m.count("cmt_unknown_total"),
        lambda m: m.gauge("cmt_ingest_windows_total", 1),
        lambda m: m.count("cmt_ingest_windows_total", reason="x"),
        lambda m: m.count("cmt_ingest_dead_letters_total"),
    ],
)
def test_unknown_name_or_wrong_labels_raise_at_once(write: object) -> None:
    with pytest.raises(KeyError):
        write(Metrics())  # type: ignore[operator]


PARTS = "ingest|pool|bank|feed|query|thread"
UNITS = "seconds|bytes|tokens|ratio"
THINGS = "windows|records|rows|documents|fragments|version|partitions|compressors|consumers|questions|listeners|running|queued"


def wrong_with(name: str, spec: MetricSpec) -> list[str]:
    """What keeps a metric's name from saying its part, its kind, and its unit or what it counts."""
    ending = "total" if spec.kind == "counter" else f"({UNITS}|{THINGS})"
    return [
        *(["part"] if not re.match(rf"cmt_({PARTS})_[a-z]", name) else []),
        *(["ending"] if not re.search(rf"_{ending}$", name) else []),
        *(["characters"] if not re.fullmatch("[a-z_]+", name) or "__" in name else []),
        *(["help"] if not re.fullmatch(r"[A-Z].+\.", spec.help) else []),
    ]


def test_names_carry_units_and_kinds() -> None:
    assert {name: wrong for name, spec in TABLE.items() if (wrong := wrong_with(name, spec))} == {}


@pytest.mark.parametrize(
    ("name", "kind", "help_", "wrong"),
    [
        ("cmt_ingest_lag", "gauge", "Records.", ["ending"]),
        ("cmt_ingest_lag_ms", "gauge", "Milliseconds.", ["ending"]),
        ("cmt_ingest_windows", "counter", "Windows.", ["ending"]),
        ("cmt_bank_rows_total", "gauge", "Rows.", ["ending"]),
        ("ingest_lag_records", "gauge", "Records.", ["part"]),
        ("cmt_serve_wait_seconds", "histogram", "Seconds.", ["part"]),
        ("cmt_query__wait_seconds", "histogram", "Seconds.", ["part", "characters"]),
        ("cmt_query_wait_seconds", "histogram", "seconds", ["help"]),
    ],
)
def test_a_name_without_its_unit_or_kind_is_found(name: str, kind: Any, help_: str, wrong: list[str]) -> None:
    assert wrong_with(name, MetricSpec(kind, help_)) == wrong


def test_snapshot_is_a_copy() -> None:
    metrics = Metrics()
    metrics.count("cmt_ingest_windows_total")
    snapshot = metrics.snapshot()
    metrics.count("cmt_ingest_windows_total")
    assert snapshot.numbers["cmt_ingest_windows_total"][()] == 1
