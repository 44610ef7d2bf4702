"""The choices in the chart that matter, each as one claim."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import helm_python as helm
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.deployment.chart import (
    CI_NAMES,
    CLUSTER_KEYS,
    ci_files,
    ci_objects,
    ci_values,
    objects,
    of_kind,
    render,
    templates,
)

KAFKA = {"kafka": {"bootstrapServers": "kafka:9092"}}
HASH = "0" * 64


def serve_config(found: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(of_kind(found, "RayService")["spec"]["serveConfigV2"])
    return config


@pytest.mark.parametrize("door", [{"ingress": {"enabled": True, "host": "h"}}, {"gateway": {"enabled": True}}])
def test_without_keys_nothing_leads_in_from_outside(door: dict[str, Any]) -> None:
    assert not [one for one in ci_objects("minimal") if one["kind"] in ("Ingress", "HTTPRoute")]
    with pytest.raises(helm.HelmError, match="strangers could ask without a key"):
        render(KAFKA | door)


def test_an_ingress_shows_neither_metrics_nor_probes() -> None:
    paths = of_kind(ci_objects("secure"), "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert {(one["path"], one["pathType"]) for one in paths} == {
        ("/v1", "Prefix"), ("/static", "Prefix"), ("/openapi.json", "Prefix"), ("/", "Exact"),
    }  # fmt: skip


@pytest.mark.parametrize("name", CI_NAMES)
def test_every_container_is_confined(name: str) -> None:
    for where, template in templates(ci_objects(name)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, where
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), where
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where


@pytest.mark.parametrize("name", CI_NAMES)
def test_what_must_be_written_to_is_a_volume(name: str) -> None:
    """Ray's session, shared memory and HOME; the root file system is read-only."""
    for where, template in templates(ci_objects(name)):
        for container in template["spec"]["containers"]:
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/dev/shm", "/etc/cmt"} <= mounts, where
            assert {"name": "HOME", "value": "/tmp"} in container["env"]
            assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in template["spec"]["volumes"]}


def test_rays_autoscaler_is_confined_too() -> None:
    for kind, key in CLUSTER_KEYS.items():
        options = of_kind(ci_objects("minimal"), kind)["spec"][key]["autoscalerOptions"]
        assert options["securityContext"]["readOnlyRootFilesystem"] is True
        assert options["resources"]["limits"].keys() == {"cpu", "memory"}
        assert options["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


@pytest.mark.parametrize("name", CI_NAMES)
def test_secrets_come_by_reference_only(name: str) -> None:
    secret = re.compile("PASSWORD|SECRET|API_KEY|ACCESS_KEY|TOKEN|USERNAME")
    for where, template in templates(ci_objects(name)):
        for variable in (one for container in template["spec"]["containers"] for one in container["env"]):
            if secret.search(variable["name"]):
                assert set(variable) == {"name", "valueFrom"}, (where, variable)
    config = of_kind(ci_objects(name), "ConfigMap", "-config")["data"]["cmt.yaml"]
    assert not re.search("password|secret|api_key|username", config)


@pytest.mark.parametrize("name", CI_NAMES)
def test_no_service_link_can_pass_for_a_setting(name: str) -> None:
    """Kubernetes would give every pod CMT_..._SERVICE_HOST for a Service named cmt-...; an unknown CMT_ variable is an error."""
    assert all(template["spec"]["enableServiceLinks"] is False for _, template in templates(ci_objects(name)))


def test_only_heads_have_a_token_for_kubernetes() -> None:
    for where, template in templates(ci_objects("minimal")):
        assert template["spec"]["automountServiceAccountToken"] is where.endswith("head"), where


@pytest.mark.parametrize("name", CI_NAMES)
def test_rays_own_schema_takes_the_serve_config(name: str) -> None:
    if not any(one["kind"] == "RayService" for one in ci_objects(name)):
        assert name == "external-kafka"
        return
    config = serve_config(ci_objects(name))
    parsed = ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)  # the schema itself lets unknown keys pass
    (application,) = parsed.applications
    assert set(config["applications"][0]) <= set(type(application).model_fields)
    assert (application.name, application.route_prefix) == ("cmt", "/")


def test_replicas_scale_between_their_limits() -> None:
    (gpu,) = serve_config(ci_objects("gpu"))["applications"][0]["deployments"]
    assert gpu["autoscaling_config"]["max_replicas"] == 4
    (secure,) = serve_config(ci_objects("secure"))["applications"][0]["deployments"]
    assert secure["num_replicas"] == 2


def _names(files: dict[str, str]) -> tuple[str, str]:
    found = objects(files)
    query = of_kind(found, "RayService")["spec"]["rayClusterConfig"]
    return of_kind(found, "RayJob")["metadata"]["name"], json.dumps(query, sort_keys=True)


def test_another_checkpoint_is_exchanged_in_the_running_query_pods() -> None:
    """Only Serve's user_config changes (decision 0022); the ingest is made anew."""
    other = KAFKA | {"settings": {"model": {"checkpoint": "/models/next"}}}
    before, after = render(KAFKA), render(other)
    assert _names(before)[1] == _names(after)[1]
    assert _names(before)[0] != _names(after)[0]
    (engine,) = serve_config(objects(after))["applications"][0]["deployments"]
    assert engine["user_config"]["checkpoint"] == "/models/next"


def test_another_bank_in_the_store_is_exchanged_in_the_running_query_pods() -> None:
    before, after = (
        objects(render(KAFKA | {"bank": {"type": "s3", "s3": {"uri": uri}}})) for uri in ("s3://news/a", "s3://news/b")
    )
    pods = [of_kind(found, "RayService")["spec"]["rayClusterConfig"] for found in (before, after)]
    assert pods[0] == pods[1]
    assert serve_config(after)["applications"][0]["deployments"][0]["user_config"]["bank"] == "s3://news/b"


@pytest.mark.parametrize("change", [{"settings": {"serve": {"max_batch": 8}}}, {"auth": {"apiKeys": {"alice": HASH}}}])
def test_what_only_questions_need_starts_new_query_pods_and_leaves_the_ingest_alone(change: dict[str, Any]) -> None:
    before, after = _names(render(KAFKA)), _names(render(KAFKA | change))
    assert before[1] != after[1]
    assert before[0] == after[0]


def test_what_only_the_ingest_needs_leaves_the_query_pods_alone() -> None:
    before, after = _names(render(KAFKA)), _names(render(KAFKA | {"settings": {"ingest": {"batch_windows": 8}}}))
    assert before[1] == after[1]
    assert before[0] != after[0]


def test_the_ingest_is_begun_again_however_it_ended() -> None:
    """KubeRay refuses a job with a `backoffLimit` on a cluster of another object, and leaves alone one that ended well."""
    job = of_kind(ci_objects("minimal"), "RayJob")["spec"]
    assert "clusterSelector" not in job
    assert job["backoffLimit"] > 0
    for ended, said in ((0, 75), (6, 6), (130, 130)):
        script = job["entrypoint"].replace("cmt ingest", f"(exit {ended})")
        assert subprocess.run(script, shell=True, check=False).returncode == said


def test_a_pod_that_ends_drains_first() -> None:
    found = {where: template["spec"] for where, template in templates(ci_objects("minimal"))}

    def hook(where: str) -> str:
        command: str = found[where]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        return command

    assert hook("RayJob head").startswith("cmt ingest drain")
    assert found["RayJob head"]["terminationGracePeriodSeconds"] >= 30 + 10  # stop_within_s, and a little more
    waits = {one["name"]: one for one in found["RayJob head"]["containers"][0]["env"]}["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(waits["value"]) >= 30  # Ray's own default of 3 s would cut a graceful stop off
    assert hook("RayService workers").startswith("sleep 15")


def test_a_gpu_is_asked_for_by_workers_alone() -> None:
    for where, template in templates(ci_objects("gpu")):
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) is where.endswith("workers"), where
        assert template["spec"]["containers"][0]["image"] == "cmt:0.1.0-vllm"
    unnamed = ci_values("gpu") | {"image": {"tag": ""}}
    for _, template in templates(objects(render(unnamed))):
        assert template["spec"]["containers"][0]["image"] == "cmt:0.1.0-cuda"
    for _, template in templates(ci_objects("minimal")):
        assert "nvidia.com/gpu" not in template["spec"]["containers"][0]["resources"]["limits"]


def test_everything_is_denied_before_something_is_allowed() -> None:
    for name in CI_NAMES:
        deny = of_kind(ci_objects(name), "NetworkPolicy", "-default-deny")["spec"]
        assert deny == {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "cmt", "app.kubernetes.io/instance": "news"}},
            "policyTypes": ["Ingress", "Egress"],
        }
        for _, template in templates(ci_objects(name)):
            wanted = deny["podSelector"]["matchLabels"].items()
            assert wanted <= template["metadata"]["labels"].items()


def test_only_clients_that_are_named_reach_the_query_service() -> None:
    allowed = of_kind(ci_objects("secure"), "NetworkPolicy", "-clients")["spec"]["ingress"][0]["from"]
    assert {"podSelector": {}} not in allowed
    assert ci_values("secure")["networkPolicy"]["clients"][0] in allowed


def test_monitors_select_what_the_chart_makes() -> None:
    found = ci_objects("gpu")
    service = of_kind(found, "RayService")["spec"]["serveService"]
    monitor = of_kind(found, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    pods = of_kind(found, "PodMonitor")["spec"]
    for where, template in templates(found):
        if where == "Pod":
            continue
        assert pods["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert ports[pods["podMetricsEndpoints"][0]["port"]] == 8080


def test_the_bank_outlives_the_release() -> None:
    claim = of_kind(ci_objects("minimal"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_strimzis_topics_are_those_that_the_program_reads() -> None:
    found = ci_objects("s3")
    names = {one["spec"]["topicName"] for one in found if one["kind"] == "KafkaTopic"}
    assert names == {"documents", "documents.dlq"}
    config = yaml.safe_load(of_kind(found, "ConfigMap", "-config")["data"]["cmt.yaml"])
    assert config["kafka"]["bootstrap_servers"] == f"{of_kind(found, 'Kafka')['metadata']['name']}-kafka-bootstrap:9092"
    assert config["kafka"]["create_topics"] is False


def test_extra_objects_are_rendered_as_templates() -> None:
    assert of_kind(ci_objects("secure"), "ConfigMap", "news-extra")["data"] == {"made-by": "extraObjects"}


def test_keys_in_the_values_reach_the_pods_through_a_secret() -> None:
    found = ci_objects("s3")
    secret = of_kind(found, "Secret")
    assert json.loads(secret["stringData"]["api-keys"]) == ci_values("s3")["auth"]["apiKeys"]
    _, head = templates([of_kind(found, "RayService")])[0]
    keys = next(one for one in head["spec"]["containers"][0]["env"] if one["name"] == "CMT_SERVE__API_KEYS")
    assert keys["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "api-keys"}
    for _, template in templates([of_kind(found, "RayJob")]):
        assert not [one for one in template["spec"]["containers"][0]["env"] if one["name"] == keys["name"]]


def test_the_test_hook_asks_end_to_end() -> None:
    pod = of_kind(ci_objects("secure"), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    script = pod["spec"]["containers"][0]["command"][-1]
    assert script.index("cmt feed play") < script.index("cmt ask")
    assert "tests/ask.yaml" in str(list(ci_files("secure")))


@pytest.mark.parametrize(
    ("known", "token_auth", "tag", "refused"),
    [
        (["v1", "ray.io/v1/RayCluster"], True, "", True),
        (["v1", "ray.io/v1/RayCluster"], False, "", False),
        (["v1", "ray.io/v1/RayCluster", "ray.io/v1/RayCronJob"], True, "", False),
        (["v1"], True, "", False),  # nobody knows: `helm template` without a cluster
        (["v1"], True, "v1.5.1", True),
        (["v1"], True, "1.5.0-rc.0", True),
        (["v1"], False, "v1.5.1", False),
        (["v1"], True, "v1.6.0", False),
        (["v1"], True, "1.6.0-rc.0", False),
        (["v1"], True, "nightly", False),
    ],
)
def test_tokens_are_refused_where_kuberay_is_too_old_for_them(
    known: list[str], token_auth: bool, tag: str, refused: bool
) -> None:
    words = f'(list (splitList "," "{",".join(known)}") {str(token_auth).lower()} "{tag}")'
    asked = f'{{{{ include "cmt.kuberayProblem" {words} }}}}'
    extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "asked"}, "data": {"said": asked}}
    found = objects(render(KAFKA | {"extraObjects": [extra]}))
    said = of_kind(found, "ConfigMap", "asked")["data"]["said"]
    assert bool(said) is refused
    if refused:
        assert "ray.tokenAuth=false" in said
        assert "\n" not in said


@pytest.mark.parametrize("part", ["query", "ingest"])
def test_an_operator_that_is_installed_too_and_is_too_old_for_tokens_stops_the_rendering(part: str) -> None:
    other = "ingest" if part == "query" else "query"
    operator = {"enabled": True, "image": {"tag": "v1.5.1"}}
    values = KAFKA | {"kuberay-operator": operator, other: {"enabled": False}}
    with pytest.raises(helm.HelmError, match=r"set ray\.tokenAuth=false"):
        render(values)
    assert render(values | {"ray": {"tokenAuth": False}})
    assert render(
        values | {"kuberay-operator": operator | {"enabled": False}}
    )  # another's: the cluster says what it serves


def test_a_budget_says_what_must_stay() -> None:
    """Kubernetes can't count what may go of a RayCluster's pods: it refuses `maxUnavailable` where no scale subresource is."""
    for name, stays in (("minimal", 1), ("secure", 2)):
        for part in ("query", "ingest"):
            budget = of_kind(ci_objects(name), "PodDisruptionBudget", part)["spec"]
            assert budget.keys() == {"minAvailable", "selector"}
            assert budget["minAvailable"] == (stays if part == "query" else 1)
    (none,) = [
        one["spec"]["minAvailable"]
        for one in objects(render(KAFKA | {"query": {"maxUnavailable": 9}}))
        if one["kind"] == "PodDisruptionBudget" and one["metadata"]["name"].endswith("query")
    ]
    assert none == 0


def test_what_the_job_that_empties_redis_needs_outlives_the_release() -> None:
    """KubeRay makes that job of the head's pod template when the release is gone: its account, settings and keys."""
    values = ci_values("secure") | {"auth": ci_values("s3")["auth"]}
    for kept, redis in (("keep", "redis:6379"), (None, "")):
        values["query"] = values["query"] | {"gcsFaultTolerance": {"redisAddress": redis}}
        found = objects(render(values))
        head = dict(templates(found))["RayService head"]
        account = of_kind(found, "ServiceAccount", head["spec"]["serviceAccountName"])
        for one in (account, of_kind(found, "ConfigMap", "cmt-config"), of_kind(found, "Secret")):
            assert one["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == kept
