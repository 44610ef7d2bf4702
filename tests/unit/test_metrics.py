"""Metrics: one table, strict names, and sums over processes."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics import TABLE, Metrics, render


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


def test_names_carry_units_and_kinds() -> None:
    for name, spec in TABLE.items():
        assert re.fullmatch(r"cmt_(ingest|pool|bank|feed|query|thread)_[a-z_]+", name)
        assert name.endswith("_total") == (spec.kind == "counter"), name
        assert spec.help.endswith("."), name


def test_snapshot_is_a_copy() -> None:
    metrics = Metrics()
    metrics.count("cmt_ingest_windows_total")
    snapshot = metrics.snapshot()
    metrics.count("cmt_ingest_windows_total")
    assert snapshot.numbers["cmt_ingest_windows_total"][()] == 1
