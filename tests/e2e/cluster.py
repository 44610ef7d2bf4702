"""A Kubernetes cluster for tests, by kubectl and helm: found through KUBECONFIG, or the reason why there is none."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CHART", "PARTS", "Namespace", "helm", "kubectl", "missing"]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "cmt"
PARTS = Path(__file__).parent / "parts"
Object = dict[str, Any]


@functools.cache
def missing() -> str:
    """Why nothing can be installed here; empty where it can."""
    if os.environ.get("E2E") != "1":
        return "a cluster is only used where E2E=1 says so, as `make e2e` does"
    if not os.environ.get("KUBECONFIG"):
        return "no cluster: KUBECONFIG is not set"
    for tool in ("kubectl", "helm"):
        if shutil.which(tool) is None:
            return f"no cluster: {tool} is not installed"
    done = _run(["kubectl", "get", "nodes", "--request-timeout=10s"], "", 30.0)
    return "" if done.returncode == 0 else f"no cluster: {done.stderr.strip().splitlines()[-1:]}"


def kubectl(*words: str, stdin: str = "", timeout_s: float = 120.0, check: bool = True) -> str:
    """What kubectl printed; AssertionError with its complaint when it failed and `check`."""
    return _checked(["kubectl", *words], stdin, timeout_s, check)


def helm(*words: str, timeout_s: float = 120.0, check: bool = True) -> str:
    """What helm printed; AssertionError with its complaint when it failed and `check`."""
    return _checked(["helm", *words], "", timeout_s, check)


def _checked(command: list[str], stdin: str, timeout_s: float, check: bool) -> str:
    done = _run(command, stdin, timeout_s)
    if check:
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done.stdout + ("" if check else done.stderr)


def _run(command: list[str], stdin: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)


class Namespace:
    """One namespace of the cluster, in which Pod Security `restricted` is enforced."""

    def __init__(self, name: str) -> None:
        self.name = name
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        kubectl("apply", "-f", "-", stdin=json.dumps(made))

    def kubectl(self, *words: str, stdin: str = "", timeout_s: float = 120.0, check: bool = True) -> str:
        """kubectl in this namespace."""
        return kubectl("--namespace", self.name, *words, stdin=stdin, timeout_s=timeout_s, check=check)

    def apply(self, part: str, **texts: str) -> None:
        """Applies `parts/PART.yaml` with every @NAME@ in it replaced, and waits until its pods are ready."""
        text = (PARTS / f"{part}.yaml").read_text(encoding="utf-8")
        for name, value in texts.items():
            text = text.replace(f"@{name}@", value)
        self.kubectl("apply", "-f", "-", stdin=text)
        for one in yaml.safe_load_all(text):
            if one["kind"] == "Pod":
                self.kubectl(
                    "wait", "--for=condition=Ready", f"pod/{one['metadata']['name']}", "--timeout=300s", timeout_s=330
                )

    def secret(self, name: str, **values: str) -> None:
        """Makes a Secret; a double underscore in a key's name stands for a dot, a single one for a dash."""
        keys = {key.replace("__", ".").replace("_", "-"): value for key, value in values.items()}
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(made))

    def exec(self, pod: str, *words: str, stdin: str = "", timeout_s: float = 300.0, check: bool = True) -> str:
        """Runs a command in the first container of a pod."""
        options = ["exec", "--quiet", *(["--stdin"] if stdin else []), pod]
        return self.kubectl(*options, "--", *words, stdin=stdin, timeout_s=timeout_s, check=check)

    def found(self, kind: str, selector: str = "") -> list[Object]:
        """The objects of a kind, as the cluster has them."""
        items: list[Object] = json.loads(self.kubectl("get", kind, "--selector", selector, "--output=json"))["items"]
        return items

    def pod(self, selector: str) -> str:
        """Name of a ready pod that is not on its way out; empty while there is none."""
        for one in self.found("pods", selector):
            conditions = {part["type"]: part["status"] for part in one["status"].get("conditions", [])}
            if conditions.get("Ready") == "True" and "deletionTimestamp" not in one["metadata"]:
                return str(one["metadata"]["name"])
        return ""
