"""A figure beside its bar, printed and kept as JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.cpu_kind import cpu_kind

__all__ = ["Figure", "Report", "machine", "machine_line"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number; `bar` None means that none was set, `sense` says on which side of the bar is good."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    sense: Literal["at least", "at most"] = "at least"
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the bar is reached; true without one."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.sense == "at least" else self.value <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"   {'met' if self.met else 'MISSED'}: bar {self.sense} {self.bar:,g}"
        note = f"   ({self.note})" if self.note else ""
        return f"{self.name:44} {self.value:12,.4g} {self.unit:12}{bar}{note}"


@dataclass
class Report:
    """All figures of a run, with the machine that gave them."""

    figures: list[Figure] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, figure: Figure) -> None:
        """Keeps and prints a figure."""
        self.figures.append(figure)
        print(figure, flush=True)

    def write(self, path: Path) -> None:
        """Writes the JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = [asdict(one) | {"met": one.met} for one in self.figures]
        content = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()} | self.facts
        path.write_text(json.dumps(content | {"figures": figures}, indent=2) + "\n", encoding="utf-8")

    @property
    def missed(self) -> list[Figure]:
        """The figures below their bars."""
        return [one for one in self.figures if not one.met]


def machine() -> dict[str, Any]:
    """What a figure has to say about the machine that gave it."""
    return {
        "cpu": _cpu(),
        "cpu_kind": cpu_kind(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def machine_line(what: str) -> str:
    """The first line of a table: what was measured, and where."""
    here = machine()
    return f"{what}; {here['cores']} cores {here['cpu_kind']} ({here['cpu']}), load {here['load_average']}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
