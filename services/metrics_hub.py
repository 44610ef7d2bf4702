"""The one place where all processes of the system leave their metric snapshots, so that /metrics can show all of them.

`MetricsHub` is a plain class; `hub_handle()` makes it a named Ray actor that lives as long as the process that made it,
and `MetricsPusher` sends a process's snapshot there about every second. The actor also hands the merged series to Ray's metrics
agent (`ray_export`), which is how a cluster without a query service is scraped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from services.metrics import TABLE, Metrics, Snapshot
from services.supervision import ServiceThread

__all__ = ["HUB_NAME", "HUB_NAMESPACE", "MetricsHub", "MetricsPusher", "hub_handle"]

HUB_NAME = "cmt-metrics"
HUB_NAMESPACE = "cmt"  # named explicitly: Serve replicas live in a Ray namespace of their own

_log = logging.getLogger(__name__)
_EXPORT_EVERY_S = 5.0  # Ray's agents take their figures about as often


@dataclass(slots=True)
class _Entry:
    snapshot: Snapshot
    pushed_at: float


class MetricsHub:
    """The latest snapshot of every process; one silent for `stale_s` keeps its counters and loses its gauges."""

    def __init__(self, stale_s: float = 15.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stale_s = stale_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def push(self, process: str, snapshot: Snapshot) -> None:
        """Replaces the snapshot of `process`; the latest pusher comes last, so its gauges win."""
        self._entries.pop(process, None)
        self._entries[process] = _Entry(snapshot, self._clock())

    def snapshots(self) -> list[Snapshot]:
        """The snapshots of all processes, oldest push first."""
        now = self._clock()
        return [
            entry.snapshot if now - entry.pushed_at <= self._stale_s else _without_gauges(entry.snapshot)
            for entry in self._entries.values()
        ]


def _without_gauges(snapshot: Snapshot) -> Snapshot:
    numbers = {name: series for name, series in snapshot.numbers.items() if TABLE[name].kind != "gauge"}
    return Snapshot(numbers, snapshot.histograms)


class _HubActor(MetricsHub):
    """The hub in its actor, with a thread that exports what it has through Ray."""

    def __init__(self) -> None:
        super().__init__()
        from services.ray_export import RayExport

        self._lock = threading.Lock()
        self._export = RayExport()
        self._own = Metrics()
        ServiceThread("ray-export", self._run, self._own).start()

    def push(self, process: str, snapshot: Snapshot) -> None:
        with self._lock:
            super().push(process, snapshot)

    def snapshots(self) -> list[Snapshot]:
        with self._lock:
            return super().snapshots()

    def _run(self) -> None:
        while True:
            time.sleep(_EXPORT_EVERY_S)
            self.push("hub", self._own.snapshot())
            self._export.send(self.snapshots())


def hub_handle() -> Any:
    """The hub's Ray actor, made when there is none; keep the handle, since the actor ends with its maker's last one."""
    actor = ray.remote(_HubActor)
    return actor.options(name=HUB_NAME, namespace=HUB_NAMESPACE, get_if_exists=True, num_cpus=0).remote()


class MetricsPusher:
    """A daemon thread that pushes the snapshot of `metrics` as `process` every `interval_s` until `stop()`."""

    def __init__(self, process: str, metrics: Metrics, interval_s: float = 1.0) -> None:
        self._process = process
        self._metrics = metrics
        self._interval_s = interval_s
        self._hub: Any = None
        self._stopped = threading.Event()
        self._thread = ServiceThread("metrics-pusher", self._run, metrics).start()

    def push(self) -> bool:
        """Sends one snapshot now; False when the hub does not answer (the next push looks for it again)."""
        try:
            if self._hub is None:
                self._hub = hub_handle()
            ray.get(self._hub.push.remote(self._process, self._metrics.snapshot()), timeout=5.0)
        except (
            RayError,
            GetTimeoutError,
            ValueError,
        ) as error:  # ValueError: the named actor died while being looked up
            _log.debug("metrics of %s were not pushed: %s", self._process, error)
            self._hub = None
            return False
        return True

    def stop(self) -> None:
        """Pushes a last time and ends the thread."""
        self._stopped.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.push()
        if ray.is_initialized():
            self.push()
