"""A Ray cluster of three nodes on this machine: one dies under load, and ingest and questions go on.

The query service is deployed from the chart's own Serve config, as KubeRay hands it to Serve.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from services.metrics_hub import HUB_NAMESPACE
from services.query import app
from services.settings import Settings
from services.stream.broker import EmbeddedBroker
from services.stream.producer import DocumentProducer
from tests.deployment.chart import ci_objects, of_kind
from tests.faults.stream_model import StreamModel
from tests.faults.world import World, fault_settings
from tests.integration.conftest import find_free_port

pytestmark = pytest.mark.timeout(300)
MARKER = "Admiral Quist unveiled the observatory of Ravnkilde."
QUESTION = {"model": "cmt", "messages": [{"role": "user", "content": "Who unveiled the observatory of Ravnkilde?"}]}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of every process of the cluster: those that Serve starts find them in their environment."""
    made = fault_settings(tmp_path, "nodes", serve__port=find_free_port(), serve__replicas=2)
    monkeypatch.setenv("CMT_BANK__URI", made.bank.uri)
    monkeypatch.setenv("CMT_SERVE__PORT", str(made.serve.port))
    monkeypatch.setenv("CMT_SERVE__REPLICAS", str(made.serve.replicas))
    return made


@pytest.fixture
def cluster(settings: Settings) -> Iterator[Cluster]:
    """A head without CPUs of its own, as in the chart, and two workers."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=4)
    ray.init(address=made.address, namespace="cmt", log_to_driver=False)
    try:
        yield made
    finally:
        app.stop()
        ray.shutdown()
        made.shutdown()


def deploy(settings: Settings, **target: str) -> str:
    """The chart's Serve config with the small model and this test's bank, port and replicas; the service's URL.

    `target` is what else to serve, as in another release's values.
    """
    config = yaml.safe_load(of_kind(ci_objects("minimal"), "RayService")["spec"]["serveConfigV2"])
    config["http_options"] = {"host": "127.0.0.1", "port": settings.serve.port}
    (application,) = config["applications"]
    application["args"] = {"model_factory": "services.lexical:load_lexical"}
    (engine,) = application["deployments"]
    engine["num_replicas"] = settings.serve.replicas
    engine["user_config"] |= {"bank": settings.bank.uri} | target
    serve.start(proxy_location=config["proxy_location"], http_options=config["http_options"])
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
    end = time.monotonic() + 150.0  # Serve's own wait gives up after 60 s, which a busy machine can need
    while (found := serve.status().applications[app.APP_NAME]).status != ApplicationStatus.RUNNING:
        assert found.status != ApplicationStatus.DEPLOY_FAILED, found.message
        assert time.monotonic() < end, found
        time.sleep(0.2)
    return f"http://127.0.0.1:{settings.serve.port}"


@dataclass(frozen=True)
class Failed:
    """A question without an answer: its status (0: the connection broke), what was said, when it began and ended."""

    status: int
    said: str
    asked: float
    ended: float

    def was_lost_with(self, dying: float, died: float) -> bool:
        """Whether it was on its way when the node died: then Serve's proxy answers 500, since the gateway on that
        node may have begun with it. The service's own refusals are 503.
        """
        return self.asked < died and self.ended > dying


class Questions:
    """Asks again and again, in a thread; remembers when each answer came and how it ended."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answered: list[float] = []
        self.failed: list[Failed] = []
        self.wrong: list[Any] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.2):
            asked = time.monotonic()
            try:
                with httpx.Client(timeout=20.0, trust_env=False) as client:  # a new connection: another node's proxy
                    answer = client.post(f"{self._url}/v1/chat/completions", json=QUESTION)
            except httpx.HTTPError as error:
                self.failed.append(Failed(0, repr(error), asked, time.monotonic()))
                continue
            if answer.status_code != 200:
                self.failed.append(Failed(answer.status_code, answer.text, asked, time.monotonic()))
            elif "marker" in [source["doc_id"] for source in answer.json()["sources"]]:
                self.answered.append(time.monotonic())
            else:
                self.wrong.append(answer.json())

    def until_answered_after(self, moment: float, within_s: float = 120.0) -> None:
        end = time.monotonic() + within_s
        while not self.answered or self.answered[-1] <= moment:
            assert time.monotonic() < end, f"no answer any more: {self.failed}, {self.wrong[:1]}"
            time.sleep(0.1)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30.0)


def loaded(replicas: int) -> dict[str, str]:
    """{replica: checkpoint that it serves}."""
    handle, found = serve.get_deployment_handle("Engine", app.APP_NAME), dict[str, str]()
    end = time.monotonic() + 60.0
    while len(found) < replicas:
        assert time.monotonic() < end, found
        one = handle.loaded.remote().result(timeout_s=30.0)
        found[one.replica] = one.target["checkpoint"]
    return found


def until_loaded(checkpoint: str, replicas: int) -> set[str]:
    """The replicas, once all of them serve this checkpoint."""
    end = time.monotonic() + 60.0
    while set((found := loaded(replicas)).values()) != {checkpoint}:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    return set(found)


def helm_test(world: World, url: str) -> str:
    """Runs the script of the chart's test hook against this cluster; what it printed."""
    script = of_kind(ci_objects("minimal"), "Pod")["spec"]["containers"][0]["command"][-1]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CMT_KAFKA__BOOTSTRAP_SERVERS": world.broker.bootstrap,
        "CMT_KAFKA__TOPIC": world.settings.kafka.topic,
        "CMT_CLIENT__URL": url,
    }
    done = subprocess.run(["/bin/sh", "-ec", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def node_of(actor: Any) -> str:
    node: str = ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
    return node


def publish_marker(world: World) -> None:
    with DocumentProducer(world.settings.kafka, world.broker.bootstrap) as producer:
        value = {"id": "marker", "text": MARKER, "title": "Observatory"}
        producer.send_raw(b"marker", json.dumps(value).encode(), ())
        producer.flush(30.0)
    world.model.live["default", "marker"] = ("Observatory", MARKER)
    world.model.sent += 1


def test_ingest_and_questions_go_on_when_a_node_dies(cluster: Cluster, settings: Settings) -> None:
    with EmbeddedBroker(find_free_port()) as broker:
        world = World(broker, settings, StreamModel(seed=11), rate_per_s=150.0)
        world.start()
        questions = None
        try:
            publish_marker(world)
            world.wait_until_committed()
            url = deploy(settings)
            questions = Questions(url)
            questions.until_answered_after(0.0)
            lost = node_of(world.handle.compressors[0])
            death: list[float] = []  # when the node began to die, and when it was gone

            def fault() -> None:
                (socket,) = [one["ObjectStoreSocketName"] for one in ray.nodes() if one["NodeID"] == lost]
                (node,) = [one for one in cluster.worker_nodes if one.plasma_store_socket_name == socket]
                death.append(time.monotonic())
                cluster.remove_node(node, allow_graceful=False)
                death.append(time.monotonic())
                questions.until_answered_after(death[1])

            world.during(600, fault)
            world.check()  # nothing lost, nothing double, every bad record in the dead-letter topic
            questions.until_answered_after(time.monotonic())
            assert "seven million crowns" in helm_test(world, url)
            before = until_loaded("default", settings.serve.replicas)
            deploy(settings, checkpoint="next")  # as `helm upgrade` with another settings.model.checkpoint
            assert until_loaded("next", settings.serve.replicas) == before  # the same replicas: nothing was restarted
            questions.until_answered_after(time.monotonic())
            assert not questions.wrong
            in_flight = [one for one in questions.failed if one.status == 500 and one.was_lost_with(*death)]
            assert len(in_flight) <= 1, in_flight  # they are asked one after the other
            others = [one for one in questions.failed if one not in in_flight]
            assert {one.status for one in others} <= {0, 503}, (death, others)
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            assert lost not in alive
            assert len(alive) == 2
            assert all(node_of(one) in alive for one in [*world.handle.compressors, *world.handle.consumers])
            assert ray.get_actor("cmt-metrics", namespace=HUB_NAMESPACE)
            print(f"answered {len(questions.answered)}, failed {questions.failed}")
        finally:
            if questions is not None:
                questions.stop()
            world.handle.kill()
