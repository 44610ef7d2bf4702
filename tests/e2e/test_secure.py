"""ci/secure on a cluster: Kafka by TLS and password, Redis behind the query head, keys, and a Prometheus that watches it all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment.prometheus import RULES
from tests.e2e.cluster import Namespace, helm, kubectl
from tests.e2e.installed import IMAGE, MARKER, Release
from tests.waiting import until

pytestmark = pytest.mark.timeout(2400)
REDIS_IMAGE = os.environ.get("E2E_REDIS_IMAGE", "redis:7")
PROMETHEUS_IMAGE = os.environ.get("E2E_PROMETHEUS_IMAGE", "prom/prometheus:v3.5.0")
PROMETHEUS_VERSION = os.environ.get("E2E_PROMETHEUS_VERSION", PROMETHEUS_IMAGE.rpartition(":")[2])
PROMETHEUS_OPERATOR = os.environ.get(
    "E2E_PROMETHEUS_OPERATOR",
    "https://github.com/prometheus-operator/prometheus-operator/releases/download/v0.85.0/bundle.yaml",
)
GATEWAY = os.environ.get(
    "E2E_GATEWAY", "https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.4.1/standard-install.yaml"
)
QUESTION = "Who unveiled the observatory of Ravnkilde?"
KEY = "a-key-for-tests-0123456789"
# more questions than a key may ask in a minute, at once, so that some get 429
MANY = """
import json, sys, urllib.request as r
from concurrent.futures import ThreadPoolExecutor
def ask(number):
    body = json.dumps({"model": "cmt", "max_tokens": 1, "messages": [{"role": "user", "content": "Who?"}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {sys.argv[2]}"}
    try:
        r.urlopen(r.Request(f"{sys.argv[1]}/v1/chat/completions", body, headers), timeout=60).read()
    except OSError:
        pass
with ThreadPoolExecutor(16) as pool:
    list(pool.map(ask, range(120)))
"""
# a record that no document can be read from: a dead letter
BROKEN = """
from services.settings import load_settings
from services.stream.producer import DocumentProducer
with DocumentProducer(load_settings().kafka, "kafka:9092") as producer:
    producer.send_raw(b"broken", b"no document", ())
    producer.flush(30.0)
"""
# series that are there only once something has failed
FAILURES = {"cmt_thread_failures_total", "cmt_thread_stalled_seconds"}


@pytest.fixture(scope="module")
def definitions() -> None:
    """What the chart's monitors and routes are instances of, as their projects say, where it is missing."""
    known = kubectl("get", "customresourcedefinitions", "--output=name")
    if "prometheuses.monitoring.coreos.com" not in known:
        kubectl("apply", "--server-side", "-f", PROMETHEUS_OPERATOR)
    if "httproutes.gateway.networking.k8s.io" not in known:
        kubectl("apply", "--server-side", "-f", GATEWAY)
    made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "news"}, "value": 1000}
    kubectl("apply", "-f", "-", stdin=json.dumps(made))


@pytest.fixture(scope="module")
def door(stage: Namespace) -> Iterator[Namespace]:
    """The namespace that may ask, as an ingress controller's would."""
    made = Namespace("cmt-e2e-door")
    made.apply("client", IMAGE=IMAGE)
    yield made
    kubectl("delete", "namespace", made.name, "--timeout=120s", timeout_s=150)


@pytest.fixture(scope="module")
def release(stage: Namespace, chart: Path, door: Namespace, definitions: None) -> Release:
    add = "SCRAM-SHA-512=[password=a-password]"
    alter = ["--bootstrap-server", "localhost:9092", "--alter", "--add-config", add, "--entity-type", "users"]
    stage.exec("kafka", "/opt/kafka/bin/kafka-configs.sh", *alter, "--entity-name", "cmt")
    stage.secret("kafka-user", username="cmt", password="a-password")
    stage.secret("redis", password="another-password")
    stage.apply("redis", IMAGE=REDIS_IMAGE)
    stage.secret("cmt-keys", api_keys=json.dumps({"tests": hashlib.sha256(KEY.encode()).hexdigest()}))
    stage.secret("cmt-test-key", api_key=KEY)
    made = Release(stage, chart, "secure", "secure", key=KEY, asker=door)
    made.start()
    made.send(MARKER)
    return made


@pytest.fixture(scope="module")
def prometheus(release: Release) -> Iterator[Prometheus]:
    made = Prometheus(Namespace("cmt-e2e-monitoring"))
    yield made
    kubectl("delete", "namespace", made.namespace.name, "--timeout=120s", timeout_s=150)


class Prometheus:
    """A Prometheus in the cluster, asked through its HTTP API."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        namespace.apply("client", IMAGE=IMAGE)
        namespace.apply("prometheus", IMAGE=PROMETHEUS_IMAGE, VERSION=PROMETHEUS_VERSION, NAMESPACE=namespace.name)
        until(
            lambda: self.targets() is not None, 300.0, every_s=3, seen=lambda: namespace.kubectl("get", "pods,events")
        )

    def get(self, path: str, **words: str) -> Any:
        """`data` of an answer; None while there is none."""
        script = (
            "import sys, urllib.parse as p, urllib.request as r\n"
            "words = p.urlencode(dict(word.split('=', 1) for word in sys.argv[2:]))\n"
            "print(r.urlopen(f'http://prometheus-operated:9090{sys.argv[1]}?{words}', timeout=20).read().decode())"
        )
        said = self.namespace.exec(
            "client", "python", "-c", script, path, *(f"{name}={value}" for name, value in words.items()), check=False
        )
        return json.loads(said)["data"] if said.startswith("{") else None

    def targets(self) -> list[tuple[str, str]] | None:
        """(job, health) of every target of the chart."""
        found = self.get("/api/v1/targets", state="active")
        return None if found is None else [(one["labels"]["job"], one["health"]) for one in found["activeTargets"]]

    def values(self, expression: str) -> list[float]:
        return [
            float(one["value"][1]) for one in (self.get("/api/v1/query", query=expression) or {"result": []})["result"]
        ]


def test_from_a_feed_to_an_answer_and_helm_test(release: Release) -> None:
    release.answers(QUESTION, "marker")
    said = helm("test", release.name, "--namespace", release.namespace.name, "--timeout", "10m", timeout_s=660)
    assert re.search(r"Phase: +Succeeded", said), said


def test_only_the_named_namespace_may_ask(release: Release) -> None:
    assert release.connects(f"{release.name}-cmt-query.{release.namespace.name}", 8000, namespace=release.asker)
    assert not release.connects(f"{release.name}-cmt-query", 8000)  # the release's own namespace was not named


def test_every_part_is_scraped_and_the_rules_are_loaded(release: Release, prometheus: Prometheus) -> None:
    def all_up() -> bool:
        found = prometheus.targets() or []
        return len(found) >= 5 and {health for _, health in found} == {"up"}

    until(all_up, 180.0, every_s=3, seen=prometheus.targets)
    groups = until(lambda: prometheus.get("/api/v1/rules")["groups"], 120.0, every_s=3)
    assert {one["name"] for one in groups} == {"cmt-recorded", "cmt-alerts"}
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}


def parts(expression: str) -> Iterator[str]:
    """The sides of an alert's expression, each with a value as long as its series are there, whether it fires or not."""
    inner = re.sub(r"absent\((.*)\)$", r"\1", expression.strip())
    for part in re.split(r"\s+(?:and|unless on \(namespace\))\s+", inner):
        yield re.sub(r"(>|==) (?=[\d.]+$)", r"\1 bool ", part.strip())


def test_every_alerts_expression_gives_a_value(release: Release, prometheus: Prometheus) -> None:
    """While questions are asked, more than a key may, and after a record that no document can be read from."""
    release.namespace.exec("client", "python", "-c", BROKEN)
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    missing = {part: rule.get("alert") or rule["record"] for rule in rules for part in parts(rule["expr"])}
    missing = {part: rule for part, rule in missing.items() if not any(name in part for name in FAILURES)}

    def all_seen() -> bool:
        release.asker.exec("client", "python", "-c", MANY, release.url, KEY, timeout_s=600)
        for part in [part for part in missing if prometheus.values(part)]:
            del missing[part]
        return not missing

    until(all_seen, 240.0, every_s=5, seen=lambda: missing)


def test_the_query_head_killed_costs_few_answers_where_redis_has_its_state(release: Release) -> None:
    before = release.pod("query", "worker")
    with release.load("redis", 60, rate=1.0) as result:
        time.sleep(10)
        killed = release.kill("query", "head")
        until(lambda: release.pod("query", "head") not in ("", killed), 400.0, every_s=2, seen=release.state)
    print(
        f"\nquery head: answered {result['answered']}, refused {result['refused']}, gap {result['longest_gap_s']:.0f} s"
    )
    assert release.pod("query", "worker") == before  # the workers outlive it
    assert result["answered"]
    assert set(result["refused"]) <= {"503", "no connection", "429"}  # the load may ask more than the key's rate
    release.until_ready()
    release.until_all_are_there(result["sent"])
    release.answers(QUESTION, "marker")


def test_uninstall_ends_though_redis_has_the_clusters_state(release: Release) -> None:
    """KubeRay empties Redis by a job before it lets the cluster go, and can't in a namespace that is being deleted."""
    kept = lambda: int(release.namespace.exec("redis", "sh", "-c", 'REDISCLI_AUTH="$PASSWORD" redis-cli dbsize'))  # noqa: E731
    assert kept() > 0
    release.uninstall()
    until(lambda: not release.namespace.found("rayclusters"), 120.0, every_s=2, seen=release.state)
    assert kept() == 0
