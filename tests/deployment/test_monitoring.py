"""Rules and dashboard use the metrics that there are, fire when they should, and give values on a running service."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml

from services.metrics import TABLE, Metrics, Snapshot
from services.metrics_hub import hub_handle
from tests.deployment.chart import CHART, ROOT, ci_objects, of_kind
from tests.deployment.prometheus import RULES, needs_prometheus, prometheus
from tests.serving import LocalEngine, Served, api_of

DASHBOARD = CHART / "files" / "dashboard.json"
_QUERY = re.compile(r"(?<![\w:$\"])(cmt[:_][\w:]+)(?:\{([^}]*)\})?")


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", []))


def spec_of(name: str) -> Any:
    """The table's entry of a series, by its own name or as part of a histogram."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    if base != name and base in TABLE and TABLE[base].kind == "histogram":
        return TABLE[base]
    spec = TABLE.get(name)
    return spec if spec is not None and spec.kind != "histogram" else None


def test_rules_and_dashboard_use_only_metrics_that_there_are() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = [match.groups() for expression in expressions() for match in _QUERY.finditer(expression)]
    assert len({name for name, _ in used}) > 30
    for name, labels in used:
        if ":" in name:
            assert name in recorded, name
            continue
        spec = spec_of(name)
        assert spec is not None, f"{name} is not in services/metrics.py"
        for label in re.findall(r"(\w+)\s*[=!]", labels or ""):
            assert label in (*spec.labels, "namespace"), f"{name} has no label {label}"


def test_every_alert_says_what_is_wrong_and_has_a_paragraph_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    alerts = [rule for rule in rules() if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert f"`{alert['alert']}`" in runbook, f"docs/operations.md does not say what to do at {alert['alert']}"


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_the_chart_ships_these_rules_and_this_dashboard() -> None:
    found = ci_objects("secure")
    assert of_kind(found, "PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))
    shipped = of_kind(found, "ConfigMap", "-dashboard")
    assert json.loads(shipped["data"]["cmt.json"]) == json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert shipped["metadata"]["labels"]["grafana_dashboard"] == "1"


@needs_prometheus
@pytest.mark.parametrize("command", [["check", "rules", str(RULES)], ["test", "rules", "rules.test.yaml"]])
def test_promtool_takes_the_rules_and_every_alert_fires_when_it_should(command: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=ROOT / "deploy" / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.test.yaml").read_text(encoding="utf-8"))["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def ingest_metrics() -> Metrics:
    """What a consumer and the writer would say."""
    metrics = Metrics()
    metrics.gauge("cmt_ingest_lag_records", 40, partition="0")
    metrics.gauge("cmt_ingest_lag_records", 2, partition="1")
    metrics.gauge("cmt_pool_consumers", 2)
    return metrics


@needs_prometheus
@pytest.mark.timeout(120)
def test_a_real_prometheus_scrapes_the_service_and_the_rules_give_values(tmp_path: Path) -> None:
    ingest = ingest_metrics()

    async def snapshots() -> list[Snapshot]:
        ingest.count("cmt_ingest_records_total", 10, outcome="written")  # at every look
        ingest.observe("cmt_ingest_freshness_seconds", 0.7)
        ingest.observe("cmt_bank_commit_seconds", 0.05)
        return [ingest.snapshot()]

    served = Served(api_of(LocalEngine(), snapshots=snapshots))
    target = served.url.removeprefix("http://").rstrip("/")
    try:
        with prometheus(tmp_path, [{"job_name": "cmt-query", "static_configs": [{"targets": [target]}]}]) as running:
            question = {"model": "cmt", "messages": [{"role": "user", "content": "Who opened the bridge in Aarhus?"}]}

            def ask() -> None:
                assert httpx.post(f"{served.url}v1/chat/completions", json=question).status_code == 200

            ask()
            running.soon('cmt_query_requests_total{status="200"}', lambda value: value == 1)
            ask()
            running.soon('cmt:query_requests:rate5m{status="200"}', lambda value: value > 0)
            running.soon("cmt:query_error_ratio:rate5m", lambda value: value == 0)
            running.soon("cmt:ingest_lag_records:sum", lambda value: value == 42)
            running.soon('cmt:ingest_records:rate5m{outcome="written"}', lambda value: value > 0)
            running.soon("cmt:bank_commits:rate5m", lambda value: value > 0)
            running.soon("cmt:ingest_freshness_seconds:p99_5m", lambda value: 0.5 < value <= 1.0)
            assert not running.series('ALERTS{alertname=~"CMT(QueryDown|IngestGone)"}')
    finally:
        served.stop()


@pytest.fixture
def ray_agent() -> Iterator[str]:
    """Address of the metrics agent of a local Ray, which takes figures every second."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        namespace="cmt",
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield f"127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}"
    ray.shutdown()


@needs_prometheus
@pytest.mark.timeout(180)
def test_ingests_metrics_leave_through_rays_agent_under_their_own_names(ray_agent: str, tmp_path: Path) -> None:
    """The real hub, Ray's real agent, a real Prometheus, and the relabelling of the chart's PodMonitor."""
    hub, metrics = hub_handle(), ingest_metrics()
    metrics.observe("cmt_bank_commit_seconds", 0.05)
    ray.get(hub.push.remote("consumer", metrics.snapshot()))
    endpoint = of_kind(ci_objects("gpu"), "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    snake = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    job = {
        "job_name": "ray",
        "static_configs": [{"targets": [ray_agent], "labels": {"component": "ingest", "namespace": "prod"}}],
        "metric_relabel_configs": [
            {snake.get(key, key): value for key, value in rule.items()} for rule in endpoint["metricRelabelings"]
        ],
    }
    with prometheus(tmp_path, [job]) as running:
        running.soon('cmt_ingest_lag_records{partition="0"}', lambda value: value == 40, within_s=60.0)
        running.soon('cmt_bank_commit_seconds_bucket{le="0.05"}', lambda value: value == 1)
        running.soon('cmt:ingest_lag_records:sum{namespace="prod"}', lambda value: value == 42)
        assert running.series('{__name__=~"ray_cmt_.*"}') == []
        gone = Metrics()  # the consumer now reads partition 1 alone
        gone.gauge("cmt_ingest_lag_records", 5, partition="1")
        ray.get(hub.push.remote("consumer", gone.snapshot()))
        running.soon('cmt:ingest_lag_records:sum{namespace="prod"}', lambda value: value == 5)
