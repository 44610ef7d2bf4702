"""Every ci values file lints, renders, and gives objects that Kubernetes and the operators would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deployment.chart import CHART, CI_NAMES, ci_files, ci_objects, ci_values, of_kind, render, templates

KUBERNETES = "1.34"
_CORE = ("v1", "policy/v1", "networking.k8s.io/v1", "apps/v1", "batch/v1")


def _crds() -> dict[str, dict[str, Any]]:
    """{kind: schema of its spec}."""
    found = {}
    for path in (Path(__file__).parent / "crds").glob("*.yaml"):
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        definitions = loaded.pop("$defs", {})
        found |= {kind: schema | {"$defs": definitions} for kind, schema in loaded.items()}
    return found


def test_ci_has_a_file_for_every_way_to_install() -> None:
    assert set(CI_NAMES) == {"minimal", "gpu", "secure", "external-kafka", "s3"}


@pytest.mark.parametrize("name", CI_NAMES)
def test_lint_finds_nothing_but_the_operators_that_are_not_vendored(name: str) -> None:
    report = helm.lint(CHART, ci_values(name), kube_version=f"v{KUBERNETES}.0")
    assert report["errors"] == []
    complaints = [one["error"] for one in report["messages"] if one["severity"] > 1]
    assert complaints == [
        "chart directory is missing these dependencies: kuberay-operator,strimzi-kafka-operator",
    ]


@pytest.mark.parametrize("name", CI_NAMES)
def test_kubernetes_takes_every_core_object(name: str) -> None:
    core = [one for one in ci_objects(name) if one["apiVersion"] in _CORE]
    assert core
    for one in core:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", CI_NAMES)
def test_kubernetes_takes_every_pod_of_the_ray_clusters(name: str) -> None:
    pods = list(templates(ci_objects(name)))
    assert pods
    for where, template in pods:
        metadata = {"name": "pod", **template["metadata"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert metadata["labels"]["app.kubernetes.io/component"], where


@pytest.mark.parametrize("name", CI_NAMES)
def test_operators_take_every_custom_object(name: str) -> None:
    schemas = _crds()
    custom = [one for one in ci_objects(name) if one["apiVersion"] not in _CORE]
    assert custom
    for one in custom:
        assert set(one) == {"apiVersion", "kind", "metadata", "spec"}, one["kind"]
        jsonschema.validate(one["spec"], schemas[one["kind"]])


def test_kubernetes_takes_the_service_that_kuberay_makes_for_questions() -> None:
    made = of_kind(ci_objects("minimal"), "RayService")["spec"]["serveService"]
    service = {"apiVersion": "v1", "kind": "Service", **made}
    kubernetes_validate.validate(service, KUBERNETES, strict=True)
    assert service["spec"]["ports"][0]["name"] == "serve"  # the name by which KubeRay finds it


@pytest.mark.parametrize("name", CI_NAMES)
def test_a_template_gives_one_object_at_most(name: str) -> None:
    for path, text in ci_files(name).items():
        if path.endswith(".yaml") and "extraobjects" not in path:
            assert len([one for one in yaml.safe_load_all(text) if one]) <= 1, path


@pytest.mark.parametrize("name", CI_NAMES)
def test_no_two_objects_share_a_name(name: str) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in ci_objects(name)]
    assert len(names) == len(set(names))


def test_long_release_names_stay_within_kuberays_limit() -> None:
    with helm.Chart.load(CHART) as chart:
        files = chart.render(ci_values("minimal"), name="a" * 53, namespace="prod")
    names = [yaml.safe_load(text)["metadata"]["name"] for path, text in files.items() if "/ray" in path]
    assert len(names) == 2
    assert all(len(one) <= 47 for one in names)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ingst": {}}, "ingst"),
        ({"query": {"replica": {"min": 1, "max": 1}}}, "replica"),
        ({"settings": {"kafka": {"topik": "news"}}}, "topik"),
        ({"settings": {"bank": {"uri": "elsewhere"}}}, "uri"),
        ({"settings": {"ingest": {"batch_windows": 0}}}, "batch_windows"),
        ({"settings": {"kafka": {"security_protocol": "SSLL"}}}, "security_protocol"),
        ({"auth": {"apiKeys": {"alice": "the key itself"}}}, "alice"),
        ({"bank": {"type": "nfs"}}, "type"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"networkPolicy": {"kafkaPorts": ["kafka"]}}, "kafkaPorts"),
        ({"query": {"workerResources": {"limit": {}}}}, "limit"),
    ],
)
def test_a_mistake_in_the_values_is_named(values: dict[str, Any], said: str) -> None:
    render({"kafka": {"bootstrapServers": "kafka:9092"}})
    with pytest.raises(helm.HelmError, match=said):
        render({"kafka": {"bootstrapServers": "kafka:9092"}} | values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "kafka.bootstrapServers"),
        ({"kafka": {"bootstrapServers": "kafka:9092"}, "bank": {"type": "s3"}}, "bank.s3.uri"),
        ({"kafka": {"bootstrapServers": "kafka:9092"}, "models": {"source": "pvc"}}, "models.existingClaim"),
        (
            {"kafka": {"bootstrapServers": "kafka:9092"}, "ingest": {"workers": {"min": 1, "max": 2}}},
            "ingest.workers.max",
        ),
    ],
)
def test_what_must_be_said_is_asked_for(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm.HelmError, match=said):
        render(values)


def test_notes_say_how_to_ask_and_what_is_missing() -> None:
    notes = next(text for path, text in ci_files("minimal").items() if path.endswith("NOTES.txt"))
    assert "port-forward -n prod svc/news-cmt-query 8000:8000" in notes
    assert "No API keys are set" in notes
    assert "No alerts are installed" in notes
    secure = next(text for path, text in ci_files("secure").items() if path.endswith("NOTES.txt"))
    assert "https://news.example" in secure
    assert "No API keys" not in secure


def test_schema_and_readme_follow_from_the_values() -> None:
    namespace: dict[str, Any] = {"__name__": "generate", "__file__": str(CHART.parent / "generate.py")}
    exec(compile((CHART.parent / "generate.py").read_text(encoding="utf-8"), "generate.py", "exec"), namespace)
    for path, text in namespace["outputs"]().items():
        assert path.read_text(encoding="utf-8") == text, f"run python helm/generate.py: {path.name} is not current"
    json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
