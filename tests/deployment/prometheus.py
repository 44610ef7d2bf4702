"""A real Prometheus for a test: it scrapes what it is told every second and evaluates the chart's rules."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deployment.chart import CHART
from tests.integration.conftest import find_free_port
from tests.waiting import until

RULES = CHART / "files" / "rules.yaml"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (Debian's package `prometheus` has both)",
)


class Prometheus:
    """A running server; `value` asks it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10.0, trust_env=False)

    def series(self, query: str) -> list[dict[str, Any]]:
        """The instant vector of a query: metric and value."""
        answer = self._client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def soon(self, query: str, claim: Callable[[float], bool], within_s: float = 40.0) -> float:
        """The first value for which the claim holds."""

        def held() -> list[float]:
            return [value for one in self.series(query) if claim(value := float(one["value"][1]))]

        return until(held, within_s, every_s=0.5, seen=lambda: (query, self.series(query)))[0]

    def close(self) -> None:
        self._client.close()


@contextmanager
def prometheus(folder: Path, jobs: Sequence[dict[str, Any]]) -> Iterator[Prometheus]:
    """Runs until the block ends; `jobs` are scrape configurations."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        group["interval"] = "1s"
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": list(jobs),
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{find_free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        running = Prometheus(f"http://{address}")
        try:
            _wait(f"http://{address}/-/ready", process, folder / "log")
            yield running
        finally:
            running.close()
            process.terminate()
            process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def ready() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        with suppress(httpx.HTTPError):
            return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
        return False

    until(ready, 30.0, every_s=0.1)
