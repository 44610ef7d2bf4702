"""Writes what follows from the chart's values.yaml: the table in its README and its values.schema.json.

    python helm/generate.py           # write both
    python helm/generate.py --check   # exit 1 when one is not current

The part of the schema under `settings` is made from the program's own settings, so that a typo there fails, too.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from services.settings import Settings

CHART = Path(__file__).parent / "cmt"
START, END = "<!-- values -->", "<!-- /values -->"
# what the chart sets itself, from other values: a second place for these would contradict the first
DECIDED = {
    "kafka": ["bootstrap_servers", "embedded_port", "sasl_username", "sasl_password", "ssl_cafile", "ssl_certfile"],
    "ray": None,
    "bank": ["uri", "storage_options"],
    "model": ["cache_dir", "device"],
    "ingest": ["compressors", "max_compressors", "compressor_gpus", "consumers"],
    "serve": ["host", "port", "replicas", "gpus", "api_keys", "allow_anonymous"],
    "client": None,
    "feed": None,
    "data_dir": None,
}
_NAME = {"type": "string"}
_PORTS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
_SOME = {
    "type": "object",
    "additionalProperties": False,
    "required": ["min", "max"],
    "properties": {name: {"type": "integer", "minimum": 1} for name in ("min", "max")},
}
_RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "required": ["requests", "limits"],
    "properties": {
        name: {"type": "object", "required": ["cpu", "memory"], "additionalProperties": {"type": ["string", "integer"]}}
        for name in ("requests", "limits")
    },
}
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_QUANTITY = {"type": "string", "pattern": r"^[0-9.]+([KMGT]i?)?$"}
# by path, or by the last name of it, what the default alone does not tell
SPECIAL: dict[str, dict[str, Any]] = {
    "fullnameOverride": {"type": "string", "maxLength": 26, "pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$"},
    "image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.pullSecrets": {"type": "array", "items": _NAME},
    "models.source": {"enum": ["image", "emptyDir", "pvc"]},
    "bank.type": {"enum": ["s3", "pvc"]},
    "bank.s3.uri": {"type": "string", "pattern": "^(s3://[^/]+.*)?$"},
    "kafka.bootstrapServers": {"type": "string", "pattern": r"^([^\s,]+:[0-9]+(,[^\s,]+:[0-9]+)*)?$"},
    "auth.apiKeys": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    "networkPolicy.clients": _OBJECTS,
    "networkPolicy.kafkaPorts": _PORTS,
    "networkPolicy.s3Ports": _PORTS,
    "networkPolicy.apiServerPorts": _PORTS,
    "gateway.parentRefs": _OBJECTS,
    "gateway.hostnames": {"type": "array", "items": _NAME},
    "ingest.terminationGracePeriodSeconds": {"type": "integer", "minimum": 40},
    "ingest.consumers": {"type": "integer", "minimum": 1},
    "podSecurityContext.runAsUser": {"type": "integer", "minimum": 1},
    "extraObjects": _OBJECTS,
    "kuberay-operator": {"type": "object", "properties": {"enabled": {"type": "boolean"}}},
    "strimzi-kafka-operator": {"type": "object", "properties": {"enabled": {"type": "boolean"}}},
    **{f"{part}.{name}": _SOME for part in ("query", "ingest") for name in ("replicas", "workers", "compressors")},
    "size": _QUANTITY,
    "storage": _QUANTITY,
    "headResources": _RESOURCES,
    "workerResources": _RESOURCES,
    "strimzi.resources": _RESOURCES,
    "maxUnavailable": {"type": "integer", "minimum": 0},
    "extraEnv": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": _NAME, "value": _NAME, "valueFrom": {"type": "object"}},
        },
    },
    "commonLabels": _STRINGS,
    "labels": _STRINGS,
    "annotations": _STRINGS,
    "podAnnotations": _STRINGS,
    "nodeSelector": _STRINGS,
    "tolerations": _OBJECTS,
    "affinity": {"type": "object"},
    "topologySpreadConstraints": _OBJECTS,
}


def described(text: str) -> list[tuple[str, str, Any]]:
    """(path, its `# --` line, default) of every value that has one, in the file's order."""
    lines, rows = text.splitlines(), list[tuple[str, str, Any]]()
    values = yaml.safe_load(text)

    def walk(node: yaml.MappingNode, path: str, found: Any) -> None:
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else key.value
            above = lines[key.start_mark.line - 1].strip() if key.start_mark.line else ""
            if above.startswith("# --"):
                rows.append((name, above.removeprefix("# --").strip(), found[key.value]))
            elif isinstance(value, yaml.MappingNode):
                walk(value, name, found[key.value])
            else:
                raise SystemExit(f"values.yaml: {name} has no `# --` line")

    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    walk(root, "", values)
    return rows


def table(text: str) -> str:
    """The values as a Markdown table."""
    rows = [f"| `{path}` | `{json.dumps(default)}` | {about} |" for path, about, default in described(text)]
    return "\n".join(["| value | default | what it does |", "|---|---|---|", *rows])


def schema(text: str) -> dict[str, Any]:
    """The JSON Schema of the values; unknown keys fail everywhere but inside Kubernetes' own objects."""
    about = {path: line for path, line, _ in described(text)}

    def of(value: Any, path: str) -> dict[str, Any]:
        if path == "settings":
            return settings_schema()
        special = SPECIAL.get(path) or SPECIAL.get(path.rpartition(".")[2])
        made = dict(special) if special else _inferred(value, path, of)
        return made | ({"description": about[path]} if path in about else {})

    made = of(yaml.safe_load(text), "")
    made["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "CMT's values"} | made


def _inferred(value: Any, path: str, of: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        properties = {key: of(inner, f"{path}.{key}" if path else key) for key, inner in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": properties}
    kinds = {bool: "boolean", int: "integer", str: "string"}
    if type(value) not in kinds:
        raise SystemExit(f"values.yaml: say in SPECIAL what {path} may be")
    return {"type": kinds[type(value)]} | ({"minimum": 0} if type(value) is int else {})


def settings_schema() -> dict[str, Any]:
    """The program's settings without those that the chart decides."""
    full = Settings.model_json_schema()
    groups = full.pop("$defs")
    properties: dict[str, Any] = {}
    for name, field in full["properties"].items():
        hidden = DECIDED.get(name, [])
        if hidden is None:
            continue
        reference = field.get("$ref", "")
        if not reference:
            properties[name] = {key: field[key] for key in ("type", "enum") if key in field}
            continue
        inner = groups[reference.rpartition("/")[2]]["properties"]
        kept = {key: _plain(one) for key, one in inner.items() if key not in [*hidden, "ssl_keyfile", "ssl_password"]}
        properties[name] = {"type": "object", "additionalProperties": False, "properties": kept}
    about = "Settings of the program, as in cmt.yaml."
    return {"type": "object", "additionalProperties": False, "properties": properties, "description": about}


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in field.items() if key not in ("default", "title", "format")}


def outputs() -> dict[Path, str]:
    """What the two files must hold."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    part = f"{START}\n{table(text)}\n{END}"
    marked = re.compile(re.escape(START) + ".*" + re.escape(END), re.DOTALL)
    return {
        CHART / "README.md": marked.sub(lambda _: part, readme),
        CHART / "values.schema.json": json.dumps(schema(text), indent=1) + "\n",
    }


def main() -> None:
    """Writes, or with --check compares."""
    made = outputs()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"run python helm/generate.py: {', '.join(path.name for path in stale)} is not current")
        return
    for path in stale:
        path.write_text(made[path], encoding="utf-8")


if __name__ == "__main__":
    main()
