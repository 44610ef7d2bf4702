"""Every setting, variable and command in the chart and the compose file is one of the program."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from services.commands.tree import app
from services.query.ray_serve.serve_app import application
from services.settings import ModelSettings, Settings, load_settings
from tests.deployment.chart import CI_NAMES, ROOT, ci_objects, of_kind, templates

SECRETS = {  # what the Secrets that the ci values name would hold
    "CMT_SERVE__API_KEYS": json.dumps({"alice": "0" * 64}),
    "CMT_KAFKA__SASL_USERNAME": "user",
    "CMT_KAFKA__SASL_PASSWORD": "a password",
    "CMT_BANK__STORAGE_OPTIONS__ACCESS_KEY_ID": "an id",
    "CMT_BANK__STORAGE_OPTIONS__SECRET_ACCESS_KEY": "a secret",
    "CMT_CLIENT__API_KEY": "a key",
}


def environment(template: dict[str, Any]) -> dict[str, str]:
    """A container's variables, with secrets filled in."""
    variables = template["spec"]["containers"][0]["env"]
    return {one["name"]: one["value"] if "value" in one else SECRETS[one["name"]] for one in variables}


def settings_in(name: str, template: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Settings:
    """What the program in that pod would run with."""
    file = folder / "cmt.yaml"
    file.write_text(of_kind(ci_objects(name), "ConfigMap", "-config")["data"]["cmt.yaml"], encoding="utf-8")
    for variable in [one for one in os.environ if one.startswith("CMT_")]:
        monkeypatch.delenv(variable)
    for variable, value in environment(template).items():
        if variable.startswith("CMT_"):
            monkeypatch.setenv(variable, value)
    assert os.environ["CMT_CONFIG"] == "/etc/cmt/cmt.yaml"
    monkeypatch.setenv("CMT_CONFIG", str(file))
    return load_settings()


@pytest.mark.parametrize("name", CI_NAMES)
def test_the_program_takes_what_every_pod_is_given(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for _, template in templates(ci_objects(name)):
        settings = settings_in(name, template, monkeypatch, tmp_path)
        assert settings.ray.address == "auto"
        assert settings.serve.host == "0.0.0.0"
        assert settings.kafka.bootstrap_servers
        grace = template["spec"].get("terminationGracePeriodSeconds")
        assert grace is None or grace > settings.ingest.stop_within_s


def test_secrets_and_settings_come_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, head = templates([of_kind(ci_objects("s3"), "RayJob")])[0]
    settings = settings_in("s3", head, monkeypatch, tmp_path)
    options = {name: one.get_secret_value() for name, one in settings.bank.storage_options.items()}
    assert options == {
        "region": "us-east-1",
        "endpoint": "http://minio:9000",
        "allow_http": "true",
        "access_key_id": "an id",
        "secret_access_key": "a secret",
    }
    assert settings.bank.uri == "s3://news/bank"
    _, secure = templates([of_kind(ci_objects("secure"), "RayService")])[0]
    settings = settings_in("secure", secure, monkeypatch, tmp_path)
    assert settings.kafka.sasl_password is not None
    assert str(settings.kafka.ssl_keyfile) == "/etc/cmt/kafka/tls.key"
    assert settings.serve.max_queued == 32  # extraEnv


def test_a_pool_that_may_grow_has_the_pods_to_grow_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = of_kind(ci_objects("gpu"), "RayJob")
    _, head = templates([job])[0]
    settings = settings_in("gpu", head, monkeypatch, tmp_path)
    assert settings.ingest.max_compressors == job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] == 4
    assert settings.ingest.compressor_gpus == 1.0
    assert settings.model.device == "cuda"


def test_the_chart_names_the_programs_own_models() -> None:
    chosen = yaml.safe_load((ROOT / "helm" / "cmt" / "values.yaml").read_text(encoding="utf-8"))["settings"]["model"]
    defaults = ModelSettings()
    assert chosen == {name: getattr(defaults, name) for name in ("llm", "checkpoint", "retriever")}


def test_versions_are_those_of_the_program() -> None:
    values = yaml.safe_load((ROOT / "helm" / "cmt" / "values.yaml").read_text(encoding="utf-8"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={values['ray']['version']}" in pins
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((ROOT / "helm" / "cmt" / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == project["version"]


def test_the_serve_application_is_built_from_the_pods_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = yaml.safe_load(of_kind(ci_objects("secure"), "RayService")["spec"]["serveConfigV2"])
    (one,) = config["applications"]
    assert one["import_path"] == f"{application.__module__}:{application.__name__}"
    _, head = templates([of_kind(ci_objects("secure"), "RayService")])[0]
    settings = settings_in("secure", head, monkeypatch, tmp_path)
    built = application(one.get("args", {}))
    engine = next(iter(one["deployments"]))
    assert built._bound_deployment.name == "Gateway"
    assert built._bound_deployment.init_args[1]._bound_deployment.name == engine["name"] == "Engine"
    assert engine["user_config"] == built._bound_deployment.init_args[1]._bound_deployment.user_config
    assert engine["num_replicas"] == settings.serve.replicas == 2


def commands(text: str) -> Iterator[list[str]]:
    """Every `cmt ...` in a shell text, as words."""
    for found in re.finditer(
        r"(?:^|[\s;&|(])cmt ((?:[a-z-]+|\"[^\"]*\"|\S+)(?: +(?:\"[^\"]*\"|[^\s;&|)\\\"]+))*)", text
    ):
        yield re.findall(r"\"[^\"]*\"|[^\s;&|)\\\"]+", found.group(1).split(">")[0])


def check_command(words: list[str]) -> None:
    """The words are a command of the program with options that it has."""
    group: Any = typer.main.get_command(app)
    for word in words:
        if word in getattr(group, "commands", {}):
            group = group.commands[word]
        elif word.startswith("--"):
            known = {name for parameter in group.params for name in [*parameter.opts, *parameter.secondary_opts]}
            assert word.partition("=")[0] in known, f"{group.name} has no {word}"


def test_every_command_in_the_chart_is_one_of_the_program() -> None:
    found: list[list[str]] = []
    for name in CI_NAMES:
        for _, template in templates(ci_objects(name)):
            for container in template["spec"]["containers"]:
                hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
                found += commands("\n".join([*container.get("command", []), *hook]))
    found += commands(of_kind(ci_objects("minimal"), "RayJob")["spec"]["entrypoint"])
    assert {tuple(words[:2]) for words in found} >= {("ingest", "drain"), ("ingest",), ("feed", "play")}
    for words in found:
        check_command(words)


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(AssertionError, match="--namespce"):
        check_command(next(commands('cmt ask --namespce x "What?"')))
