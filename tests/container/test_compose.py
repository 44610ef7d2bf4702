"""`docker compose up` of deploy/compose.yaml: green, feed to answer, every service killed while documents flow, all restarted.

make compose-test          # the images must be there or be pulled; the program's is built where it is missing
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.container.engine import ROOT, docker, missing_engine
from tests.load import DOCUMENTS, LOAD
from tests.waiting import until

PROJECT = "cmt-compose-test"
FILES = ["deploy/compose.yaml", "tests/container/compose.test.yaml"]
S3 = {
    "S3_BANK": "s3://news/bank",
    "S3_ACCESS_KEY_ID": "id",
    "S3_SECRET_ACCESS_KEY": "secret",
    "S3_OPTIONS": '{"region": "us-east-1", "endpoint": "http://store:9000", "allow_http": "true"}',
}
SERVICES = ["kafka", "prometheus", "query", "ingest", "ray-worker", "ray-head"]
GREEN_S = 600.0
SENT = 30
URL = "http://ray-head:8000"
MARKER = {"id": "marker", "title": "Observatory", "text": "Admiral Quist unveiled the observatory of Ravnkilde."}
QUESTION = "Who unveiled the observatory of Ravnkilde?"


def missing_compose() -> str:
    """Why compose can't be tried here; empty where it can."""
    if os.environ.get("COMPOSE_TEST") != "1":
        return "`make compose-test` starts everything with docker compose, and takes half an hour"
    if reason := missing_engine():
        return reason
    return "" if docker("compose", "version", check=False).returncode == 0 else "docker has no compose"


pytestmark = [
    pytest.mark.skipif(bool(missing_compose()), reason=missing_compose() or "-"),
    pytest.mark.timeout(3600),
]


class Stack:
    """The services of the compose files; `client` is one more container of the program in their network."""

    def __init__(self, *files: str, environment: dict[str, str] | None = None) -> None:
        self._base = ["docker", "compose", "-p", PROJECT, *(f"--file={ROOT / file}" for file in [*FILES, *files])]
        self._environment = os.environ | (environment or {})
        self.sent: list[str] = []

    def compose(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._base, *words], env=self._environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def states(self) -> dict[str, str]:
        """{container: health}, or its state where it is not running; a service may have several."""
        found = [json.loads(line) for line in self.compose("ps", "--all", "--format=json").splitlines()]
        return {one["Name"]: one["Health"] or one["State"] for one in found if one["Service"] in SERVICES}

    def until_green(self) -> float:
        """Until every service is healthy; how many seconds that took."""
        began = time.monotonic()
        until(lambda: set(self.states().values()) == {"healthy"}, GREEN_S, every_s=2, seen=self.seen)
        return time.monotonic() - began

    def seen(self) -> str:
        return f"{self.states()}\n{self.compose('logs', '--tail=12', '--no-color', check=False)[-5000:]}"

    def start_client(self) -> None:
        options = [
            "--detach",
            f"--name={PROJECT}-client",
            f"--network={PROJECT}_default",
            "--read-only",
            "--tmpfs=/tmp",
        ]
        docker("run", *options, "cmt:0.1.0", "sleep", "infinity")

    def client(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """Output of a command in the client."""
        command = ["docker", "exec", "--interactive", f"{PROJECT}-client", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=900, check=False)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def send(self, *documents: dict[str, str]) -> None:
        script = "cat > /tmp/send.jsonl && cmt feed play /tmp/send.jsonl --bootstrap-servers kafka:9092"
        self.client("sh", "-ec", script, stdin="\n".join(json.dumps(one) for one in documents))

    def until_answered(self, question: str, document: str, within_s: float = 300.0) -> None:
        words = ["cmt", "ask", "--url", URL, "--json", question]
        until(lambda: f'"{document}"' in self.client(*words, check=False), within_s, every_s=2, seen=self.seen)

    def until_all_are_there(self, ids: list[str]) -> None:
        """Until the bank has each document, in one version."""
        bad = lambda: json.loads(self.client("python", "-c", DOCUMENTS, URL, stdin=json.dumps(ids)))  # noqa: E731
        until(lambda: not bad(), 400.0, every_s=3, seen=lambda: (bad()[:5], self.seen()))

    @contextmanager
    def load(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Documents and questions while the block runs; what became of them is in the dictionary afterwards."""
        result: dict[str, Any] = {}
        words = ["python", "-", prefix, str(SENT), "1", URL, "kafka:9092"]
        running = threading.Thread(target=lambda: result.update(json.loads(self.client(*words, stdin=LOAD))))
        running.start()
        try:
            yield result
        finally:
            running.join()

    def close(self) -> None:
        docker("rm", "--force", f"{PROJECT}-client", check=False)
        self.compose("--profile", "s3", "down", "--volumes", "--timeout=5", check=False)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack()
    made.close()
    try:
        made.compose("up", "--detach")
        made.start_client()
        print(f"\nall healthy after {made.until_green():.0f} s")
        yield made
    finally:
        made.close()


def test_from_a_feed_to_an_answer(stack: Stack) -> None:
    stack.send(MARKER)
    stack.until_answered(QUESTION, "marker")


def test_prometheus_scrapes_every_part(stack: Stack) -> None:
    script = "import json, urllib.request as r; t = json.load(r.urlopen('http://prometheus:9090/api/v1/targets'))"
    script += "['data']['activeTargets']; print(json.dumps({o['scrapeUrl']: o['health'] for o in t}))"
    seen = lambda: json.loads(stack.client("python", "-c", script))  # noqa: E731
    until(lambda: set(seen().values()) == {"up"} and len(seen()) == 5, 120.0, every_s=3, seen=seen)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_killed_while_documents_flow_costs_none(stack: Stack, service: str) -> None:
    with stack.load(f"kill-{service}") as result:
        time.sleep(5)
        stack.compose("kill", service)
        stack.compose("start", service)
        green = stack.until_green()
    assert len(result["sent"]) == SENT
    print(f"\n{service}: healthy after {green:.0f} s, answered {result['answered']}, refused {result['refused']}")
    assert set(result["refused"]) <= {"503", "no connection"}
    stack.until_all_are_there(result["sent"])
    stack.until_answered(QUESTION, "marker")
    stack.sent += result["sent"]


def test_a_restart_of_all_leaves_the_same_documents_once(stack: Stack) -> None:
    ids = stack.sent
    stack.until_all_are_there(ids)
    stack.compose("restart")
    stack.until_green()
    stack.until_all_are_there([*ids, "marker"])
    stack.send({"id": "later", "title": "Mill", "text": "The mill of Sandhamn was sold to the baker Ilse Brandt."})
    stack.until_answered("Who bought the mill of Sandhamn?", "later")
    stack.until_answered(QUESTION, "marker")


def test_the_bank_in_an_object_store(stack: Stack) -> None:
    stack.close()
    on_s3 = Stack("deploy/compose.s3.yaml", environment=S3)
    try:
        on_s3.compose("--profile", "s3", "up", "--detach", "store")
        on_s3.start_client()
        make = "import urllib.request as r; r.urlopen(r.Request('http://store:9000/news', method='PUT'), timeout=5)"
        until(lambda: on_s3.client("sh", "-c", f'python -c "{make}" && echo made', check=False), 60.0, every_s=1)
        on_s3.compose("up", "--detach")
        on_s3.until_green()
        on_s3.send(MARKER)
        on_s3.until_answered(QUESTION, "marker")
    finally:
        on_s3.close()


# {class of an actor: nodes that have one}
_ACTORS = """
import collections, json, logging, ray
from ray.util.state import list_actors
ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
found = collections.defaultdict(set)
for one in list_actors(filters=[("state", "=", "ALIVE")], limit=1000):
    found[one.class_name.rpartition(":")[2]].add(one.node_id)
print(json.dumps({name: sorted(nodes) for name, nodes in found.items()}))
"""


def test_three_ray_nodes_of_which_one_dies_under_load(stack: Stack) -> None:
    """A head without CPUs and two workers, each a container; models of ingest and of questions on both workers."""
    stack.close()
    three = Stack(environment={"TEST_MODELS": "2"})
    try:
        three.compose("up", "--detach", "--scale=ray-worker=2")
        three.start_client()
        three.until_green()
        three.send(MARKER)
        three.until_answered(QUESTION, "marker")
        actors = lambda: json.loads(three.compose("exec", "-T", "ray-head", "python", "-c", _ACTORS).splitlines()[-1])  # noqa: E731
        until(lambda: len(actors().get("Engine", [])) == 2, 300.0, every_s=3, seen=lambda: (actors(), three.seen()))
        before = {name: len(nodes) for name, nodes in actors().items()}
        with three.load("node") as result:
            time.sleep(5)
            docker("kill", f"{PROJECT}-ray-worker-2")
        told = f"answered {result['answered']}, refused {result['refused']}, gap {result['longest_gap_s']:.0f} s"
        print(f"\nnodes with each actor: {before}; {told}")
        assert len(result["sent"]) == SENT
        assert result["answered"]
        assert set(result["refused"]) <= {"503", "no connection"}
        three.until_all_are_there(result["sent"])
        three.until_answered(QUESTION, "marker")
    finally:
        three.close()
