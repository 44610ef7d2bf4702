"""A release of the chart in a namespace, with what it needs beside it, and what can be asked of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.cluster import CHART, Namespace, helm, kubectl
from tests.load import DOCUMENTS, LOAD
from tests.waiting import until

__all__ = ["IMAGE", "KAFKA_IMAGE", "MARKER", "Release", "chart_copy", "hands_out_tokens"]

IMAGE = os.environ.get("E2E_IMAGE", "cmt:0.1.0")
KAFKA_IMAGE = os.environ.get("E2E_KAFKA_IMAGE", "apache/kafka:4.1.0")
MARKER = {"id": "marker", "title": "Observatory", "text": "Admiral Quist unveiled the observatory of Ravnkilde."}
VALUES = Path(__file__).parent / "values"
_PROBE = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=4).status)"
_READY_S = 900.0


def chart_copy(folder: Path) -> Path:
    """The chart without the operators' charts, which Helm wants to see even where they are switched off."""
    copied = folder / "cmt"
    shutil.copytree(CHART, copied)
    described = yaml.safe_load((copied / "Chart.yaml").read_text(encoding="utf-8"))
    described.pop("dependencies")
    (copied / "Chart.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    return copied


class Release:
    """`helm install NAME` with the values of a ci file, cut to the size of a small machine by files of `values/`.

    `key` is an API key that may ask; `asker` the namespace whose client asks, by default the release's own.
    """

    def __init__(
        self,
        namespace: Namespace,
        chart: Path,
        ci: str,
        *cuts: str,
        name: str = "news",
        key: str = "",
        asker: Namespace | None = None,
    ) -> None:
        self.namespace, self.name, self.asker = namespace, name, asker or namespace
        self.url = f"http://{name}-cmt-query.{namespace.name}:8000"
        self._key = [f"CMT_CLIENT__API_KEY={key}"]
        repository, _, tag = IMAGE.rpartition(":")
        image = {"repository": repository, "tag": tag, "digest": "", "pullSecrets": []}
        own: dict[str, Any] = {"image": image, "networkPolicy": {"operatorNamespace": operator_namespace()}}
        own["ray"] = {"tokenAuth": hands_out_tokens()}
        made = chart.parent / f"{namespace.name}-{name}.yaml"
        made.write_text(yaml.safe_dump(own), encoding="utf-8")
        files = [CHART / "ci" / f"{ci}-values.yaml", *(VALUES / f"{cut}.yaml" for cut in ("small", *cuts)), made]
        self._common = [name, str(chart), "--namespace", namespace.name, *(f"--values={file}" for file in files)]

    def install(self, *options: str) -> None:
        """Installs, or changes what is installed by `--set` options."""
        helm("upgrade", "--install", *self._common, *options)

    def start(self) -> None:
        """Installs the ingest and, once that runs, the query service: the start of two Ray clusters at once is too much for two
        cores, and Ray gives a node 30 s."""
        self.install("--set=query.enabled=false")
        self.until_ready("ingest")
        self.install()
        self.until_ready()

    def refused(self, *options: str) -> str:
        """What helm says when it does not take the values; AssertionError when it takes them."""
        done = subprocess.run(
            ["helm", "upgrade", "--install", *self._common, *options], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0, done.stdout
        return done.stderr

    def uninstall(self) -> None:
        """Takes the release away, and waits until its pods are gone."""
        helm("uninstall", self.name, "--namespace", self.namespace.name)
        until(lambda: not self.namespace.found("pods", self.selector()), 240.0, every_s=2, seen=self.state)

    def selector(self) -> str:
        """What the objects of the release have in common."""
        return f"app.kubernetes.io/instance={self.name}"

    def until_ready(self, *parts: str, within_s: float = _READY_S) -> None:
        """Until head and worker of the parts (default: both) are ready, the ingest's job runs and the service answers."""
        until(lambda: self._is_ready(parts or ("ingest", "query")), within_s, every_s=3, seen=self.state)

    def _is_ready(self, parts: tuple[str, ...]) -> bool:
        jobs = [one.get("status", {}).get("jobStatus") for one in self.namespace.found("rayjobs", self.selector())]
        return (
            all(self.pod(part, role) for part in parts for role in ("head", "worker"))
            and ("ingest" not in parts or jobs == ["RUNNING"])
            and ("query" not in parts or self.reaches(f"{self.url}/readyz"))
        )

    def pod(self, component: str, role: str) -> str:
        """Name of a ready pod that is not on its way out; empty while there is none."""
        return self.namespace.pod(f"{self.selector()},app.kubernetes.io/component={component},cmt/role={role}")

    def job(self) -> str:
        """Name of the ingest's RayJob, once there is one and no other."""
        names = [str(one["metadata"]["name"]) for one in self.namespace.found("rayjobs", self.selector())]
        return names[0] if len(names) == 1 else ""

    def address(self, component: str, role: str) -> str:
        """IP of a ready pod."""
        return self.namespace.kubectl("get", "pod", self.pod(component, role), "--output=jsonpath={.status.podIP}")

    def state(self) -> str:
        """What a person would look at first."""
        shown = self.namespace.kubectl("get", "pods,rayclusters,rayjobs,rayservices", check=False)
        warnings = ["get", "events", "--sort-by=.lastTimestamp", "--field-selector=type=Warning"]
        return f"\n{shown}\n{self.namespace.kubectl(*warnings, check=False)[-1500:]}"

    def reaches(self, url: str) -> bool:
        """Whether an HTTP request from the asking client gets a 200."""
        return self.asker.exec("client", "python", "-c", _PROBE, url, check=False).strip() == "200"

    def connects(self, host: str, port: int, pod: str = "client", namespace: Namespace | None = None) -> bool:
        """Whether a pod can open a TCP connection."""
        script = f"import socket; socket.create_connection(({host!r}, {port}), 4).close(); print('open')"
        return (namespace or self.namespace).exec(pod, "python", "-c", script, check=False).strip() == "open"

    def send(self, *documents: dict[str, str]) -> None:
        """Documents through Kafka, by `cmt feed play`."""
        lines = "\n".join(json.dumps(one) for one in documents)
        script = "cat > /tmp/send.jsonl && cmt feed play /tmp/send.jsonl --bootstrap-servers kafka:9092"
        self.namespace.exec("client", "sh", "-ec", script, stdin=lines)

    def answers(self, question: str, document: str, within_s: float = 300.0) -> None:
        """Until an answer names a document among its sources."""
        words = ["env", *self._key, "cmt", "ask", "--url", self.url, "--json", question]
        until(
            lambda: f'"{document}"' in self.asker.exec("client", *words, check=False),
            within_s,
            every_s=2,
            seen=lambda: self.asker.exec("client", *words, check=False) + self.state(),
        )

    def until_all_are_there(self, ids: list[str], within_s: float = 600.0) -> None:
        """Until the bank has every document, in one version."""
        words = ["env", *self._key, "python", "-c", DOCUMENTS, self.url]
        bad = lambda: json.loads(self.asker.exec("client", *words, stdin=json.dumps(ids)))  # noqa: E731
        until(lambda: not bad(), within_s, every_s=3, seen=lambda: (bad()[:5], self.state()))

    @contextmanager
    def load(self, prefix: str, count: int, rate: float = 2.0) -> Iterator[dict[str, Any]]:
        """Documents and questions while the block runs; what became of them is in the dictionary afterwards."""
        result: dict[str, Any] = {}
        words = [
            "env",
            *self._key,
            "python",
            "-",
            prefix,
            str(count),
            str(rate),
            self.url,
            f"kafka.{self.namespace.name}:9092",
        ]

        def run() -> None:
            result.update(json.loads(self.asker.exec("client", *words, stdin=LOAD, timeout_s=900)))

        running = threading.Thread(target=run)
        running.start()
        try:
            yield result
        finally:
            running.join()

    def kill(self, component: str, role: str) -> str:
        """Ends a pod at once, without its hooks, as a node that dies does; its name."""
        name = self.pod(component, role)
        assert name, self.state()
        self.namespace.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
        return name


def hands_out_tokens() -> bool:
    """Whether the KubeRay of this cluster does so for jobs, too: 1.6 or newer, known by the kind that it brought."""
    return "raycronjobs.ray.io" in kubectl("get", "customresourcedefinitions", "--output=name")


def operator_namespace() -> str:
    """Where the KubeRay operator runs."""
    found = json.loads(kubectl("get", "deployments", "--all-namespaces", "--output=json"))["items"]
    return next(
        (str(one["metadata"]["namespace"]) for one in found if one["metadata"]["name"] == "kuberay-operator"), ""
    )
