"""The chart as Helm's own engine renders it, and the objects and pods in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "cmt"
CI = sorted((CHART / "ci").glob("*-values.yaml"))
CI_NAMES = [path.name.removesuffix("-values.yaml") for path in CI]
CLUSTER_KEYS = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}  # where a kind keeps its Ray cluster
Object = dict[str, Any]


def ci_values(name: str) -> Object:
    values: Object = helm.values_from_yaml((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    return values


@cache
def _chart() -> helm.Chart:
    return helm.Chart.load(CHART)


def render(values: Object) -> dict[str, str]:
    """{template: what it gave}, as of `helm install news`. Raises helm.HelmError."""
    chart = _chart()
    chart.validate_schema(chart.merge_values(values))
    return dict(chart.render(values, name="news", namespace="prod"))


@cache
def ci_files(name: str) -> dict[str, str]:
    return render(ci_values(name))


def objects(files: dict[str, str]) -> list[Object]:
    manifests = [text for path, text in files.items() if path.endswith(".yaml")]
    return [one for text in manifests for one in yaml.safe_load_all(text) if one]


def ci_objects(name: str) -> list[Object]:
    return objects(ci_files(name))


def of_kind(found: list[Object], kind: str, name: str = "") -> Object:
    """The one object of a kind whose name ends so."""
    (one,) = [one for one in found if one["kind"] == kind and one["metadata"]["name"].endswith(name)]
    return one


def templates(found: list[Object]) -> list[tuple[str, Object]]:
    """(where, pod template) of every pod that these objects lead to; there is one at least, so that a loop is no empty claim."""
    made = list(_templates(found))
    assert made
    return made


def _templates(found: list[Object]) -> Iterator[tuple[str, Object]]:
    for one in found:
        cluster = one.get("spec", {}).get(CLUSTER_KEYS.get(one["kind"], "-"))
        if cluster is not None:
            yield f"{one['kind']} head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{one['kind']} {group['groupName']}", group["template"]
        if one["kind"] == "Pod":
            yield "Pod", {"metadata": one["metadata"], "spec": one["spec"]}
