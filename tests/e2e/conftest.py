"""What every test on a cluster needs: the cluster, KubeRay's operator, and a namespace with Kafka, a client and a disk.

    make e2e                      # against the cluster of KUBECONFIG; E2E=1 says that it may be used

E2E_IMAGE (cmt:0.1.0), E2E_KAFKA_IMAGE (apache/kafka:4.1.0), E2E_S3_IMAGE and so on name images that the nodes have or
can pull; E2E_KUBERAY is the kustomization of the operator, E2E_FOLDER a folder on the one node.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import PARTS, Namespace, helm, kubectl, missing
from tests.e2e.installed import IMAGE, KAFKA_IMAGE, chart_copy, operator_namespace
from tests.e2e.keys import make_keys
from tests.waiting import until

KUBERAY = os.environ.get("E2E_KUBERAY", "github.com/ray-project/kuberay/ray-operator/config/default?ref=v1.6.0")
FOLDER = os.environ.get("E2E_FOLDER", "/var/lib/cmt-e2e")
_REDIS_S = 420.0  # KubeRay waits for a head's end, and gives the job that empties Redis 300 s
KEEP = os.environ.get("E2E_KEEP", "") not in {"", "0"}  # leave the namespaces, to look at them


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """Skips everything here, with the reason, where no cluster is."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def operator(cluster: None) -> None:
    """KubeRay's definitions and its operator, installed as its documentation says where they are missing."""
    if not operator_namespace():
        kubectl("apply", "--server-side", "-k", KUBERAY)
    words = ["rollout", "status", "deployment/kuberay-operator", "--namespace", operator_namespace()]
    kubectl(*words, "--timeout=300s", timeout_s=330)


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chart_copy(tmp_path_factory.mktemp("chart"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.crt, and keystore.pem of a broker named kafka, and tls.crt and tls.key of a client."""
    return make_keys(tmp_path_factory.mktemp("keys"))


def make_disk(namespace: Namespace, claim: str) -> None:
    """A volume for a claim that is still to be made, empty and of the program's user."""
    texts = {
        "NAMESPACE": namespace.name,
        "CLAIM": claim,
        "FOLDER": f"{FOLDER}/{namespace.name}-{claim}",
        "IMAGE": IMAGE,
    }
    for part in ("own", "disk"):
        text = (PARTS / f"{part}.yaml").read_text(encoding="utf-8")
        for name, value in texts.items():
            text = text.replace(f"@{name}@", value)
        kubectl("--namespace=default", "apply", "-f", "-", stdin=text)
        if part == "own":
            pod = f"own-{claim}"
            kubectl(
                "--namespace=default",
                "wait",
                f"pod/{pod}",
                "--for=jsonpath={.status.phase}=Succeeded",
                "--timeout=120s",
            )
            kubectl("--namespace=default", "delete", "pod", pod)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, keys: Path) -> Iterator[Namespace]:
    """A namespace of the module's own, with Kafka and a client in it; gone after the module."""
    name = f"cmt-e2e-{request.module.__name__.rpartition('test_')[2].replace('_', '-')}"
    remove(name)
    made = Namespace(name)
    made.secret(
        "kafka-tls",
        **{
            file.replace(".", "__"): (keys / file).read_text()
            for file in ("ca.crt", "keystore.pem", "tls.crt", "tls.key")
        },
    )
    make_disk(made, "news-cmt-bank")
    for part, image in (("kafka", KAFKA_IMAGE), ("client", IMAGE)):
        made.apply(part, IMAGE=image, NAMESPACE=name)
    yield made
    if not KEEP:
        remove(name)


def remove(name: str) -> None:
    """A namespace and the volumes that were made for it; releases first, since KubeRay can't empty Redis in one that ends."""
    for release in helm("list", "--namespace", name, "--short").split():
        helm("uninstall", release, "--namespace", name, check=False)
    _let_clusters_end(name)
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=300s", timeout_s=330)
    for one in kubectl("get", "persistentvolumes", "--output=name").split():
        if f"/{name}-" in one:
            kubectl("delete", one)


def _let_clusters_end(name: str) -> None:
    """Until no RayCluster is left in a namespace; one whose Redis can't be emptied loses the finalizer that waits for it.

    Never by `--cascade=foreground`: Kubernetes then takes away the very job that KubeRay makes to empty Redis, again and again.
    """
    if "rayclusters.ray.io" not in kubectl("get", "customresourcedefinitions", "--output=name"):
        return
    left = lambda: kubectl("get", "rayclusters", "--namespace", name, "--output=name").split()  # noqa: E731
    try:
        until(lambda: not left(), _REDIS_S, every_s=2)
    except AssertionError:
        for one in left():
            kubectl("patch", one, "--namespace", name, "--type=merge", '--patch={"metadata":{"finalizers":null}}')


@pytest.fixture(scope="session")
def disk() -> Callable[[Namespace, str], None]:
    """See `make_disk`."""
    return make_disk
