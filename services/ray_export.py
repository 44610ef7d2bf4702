"""Hands the series of the metrics hub to Ray's own metrics agent, which shows them on every node's metrics port as `ray_NAME`.

Each series goes as a Ray gauge with its value as it stands, counters and histogram buckets too: Ray's histograms take single
observations only, and a snapshot has thousands. What Prometheus computes from them is the same; only their TYPE line differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ray.util.metrics import Gauge

from services.metrics import Snapshot, samples

__all__ = ["RayExport"]

_Series = tuple[str, tuple[tuple[str, str], ...]]


class RayExport:
    """Remembers what it has sent: a series that is gone becomes NaN, since Ray would repeat its last value forever."""

    def __init__(self, gauge: Any = Gauge) -> None:
        self._gauge = gauge
        self._gauges: dict[str, Any] = {}
        self._sent: set[_Series] = set()

    def send(self, snapshots: Iterable[Snapshot]) -> None:
        """Sets every series; Ray must be initialised in this process."""
        now: set[_Series] = set()
        for name, labels, value in samples(snapshots):
            self._set(name, labels, value)
            now.add((name, tuple(sorted(labels.items()))))
        for name, gone in self._sent - now:
            self._set(name, dict(gone), math.nan)
        self._sent = now

    def _set(self, name: str, labels: dict[str, str], value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = self._gauge(name, description=name, tag_keys=tuple(labels))
        self._gauges[name].set(value, tags=labels)
