"""What a run was begun under, kept in its folder: a run that goes on must be the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmt_core.errors import ConfigError
from cmt_core.training.distributed import rank

__all__ = ["keep_configuration"]

_FILE = "run.json"
_MISSING = "nothing"


def keep_configuration(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Writes `configuration` (plain values, nested) to the run's folder, or compares it with what is there.

    Raises ConfigError, which names the first value that differs, when the run was begun under another one.
    """
    path, now = folder / _FILE, json.loads(json.dumps(configuration))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, old, new in _differences(before, now):
            raise ConfigError(
                f"run {folder} was begun with {name} {old}, now it is {new}: train as it was begun, or name another run folder"
            )
    elif rank() == 0:
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.replace(path)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*now, *before)):
        old, new = before.get(name, _MISSING), now.get(name, _MISSING)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new)
        elif old != new:
            yield name, old, new
