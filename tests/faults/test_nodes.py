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

from services.ingest.compressor import compressor_actor
from services.metrics_hub import HUB_NAMESPACE
from services.query.ray_serve import app
from services.query.ray_serve.proxy import proxy_environment
from services.runtime import quiet_driver
from services.settings import Settings
from services.stream.broker import EmbeddedBroker
from services.stream.producer import DocumentProducer
from services.testing.lexical import load_lexical
from tests.deployment.chart import ci_objects, of_kind
from tests.faults.stream_model import StreamModel
from tests.faults.world import World, fault_settings
from tests.integration.conftest import find_free_port
from tests.integration.serve_desk import Desk
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)
MARKER = "Admiral Quist unveiled the observatory of Ravnkilde."
DEATHS = int(os.environ.get("NODE_DEATHS", "2"))
QUESTION = {"model": "cmt", "messages": [{"role": "user", "content": "Who unveiled the observatory of Ravnkilde?"}]}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of every process of the cluster: those that Serve starts find them in their environment."""
    made = fault_settings(tmp_path, "nodes", serve__port=find_free_port(), serve__replicas=2)
    monkeypatch.setenv("CMT_BANK__URI", made.bank.uri)
    monkeypatch.setenv("CMT_SERVE__PORT", str(made.serve.port))
    monkeypatch.setenv("CMT_SERVE__REPLICAS", str(made.serve.replicas))
    environment: dict[str, str] = {}
    proxy_environment(environment)  # as the image sets it
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def cluster(settings: Settings) -> Iterator[Cluster]:
    """A head without CPUs of its own, as in the chart, and two workers."""
    made = Cluster()
    add_node(made, num_cpus=0, include_dashboard=False)
    for _ in range(2):
        add_node(made, num_cpus=4)
    quiet_driver()
    ray.init(address=made.address, namespace="cmt", log_to_driver=False)
    try:
        yield made
    finally:
        app.stop()
        ray.shutdown()
        made.shutdown()


def add_node(cluster: Cluster, **options: Any) -> None:
    """Ray gives a node 30 s to start, which a busy machine can need more than once."""
    for attempt in range(5):
        try:
            cluster.add_node(**options)
            return
        except Exception as error:
            if attempt == 4 or "timed out during startup" not in str(error):
                raise


def remove_node(cluster: Cluster, node_id: str) -> None:
    """Ends a worker node at once, with all that runs on it."""
    (socket,) = [one["ObjectStoreSocketName"] for one in ray.nodes() if one["NodeID"] == node_id]
    (node,) = [one for one in cluster.worker_nodes if one.plasma_store_socket_name == socket]
    cluster.remove_node(node, allow_graceful=False)


def test_compressors_are_spread_over_the_nodes(settings: Settings, cluster: Cluster) -> None:
    """By itself Ray would put both on one node of four CPUs, and ingest would end with that node until Ray starts them again."""
    actors = [compressor_actor(settings, load_lexical, f"compressor-{number}") for number in range(2)]
    where = [one.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for one in actors]
    assert len(set(ray.get(where, timeout=240))) == 2


def deploy(settings: Settings, gateway_cpus: float = 0.0, **target: str) -> str:
    """The chart's Serve config with the small model and this test's bank, port and replicas; the service's URL.

    `target` is what else to serve, as in another release's values; a gateway that wants CPUs is not put on the head.
    """
    config = yaml.safe_load(of_kind(ci_objects("minimal"), "RayService")["spec"]["serveConfigV2"])
    config["http_options"] = {"host": "127.0.0.1", "port": settings.serve.port}
    (application,) = config["applications"]
    application["args"] = {"model_factory": "services.testing.lexical:load_lexical"}
    (engine,) = application["deployments"]
    engine["num_replicas"] = settings.serve.replicas
    engine["user_config"] |= {"bank": settings.bank.uri} | target
    if gateway_cpus:
        application["deployments"].append({"name": "Gateway", "ray_actor_options": {"num_cpus": gateway_cpus}})
    serve.start(proxy_location=config["proxy_location"], http_options=config["http_options"])
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)

    def running() -> bool:
        found = serve.status().applications[app.APP_NAME]
        assert found.status != ApplicationStatus.DEPLOY_FAILED, found.message
        return bool(found.status == ApplicationStatus.RUNNING)

    until(running, 240.0, every_s=0.2)  # Serve's own wait gives up after 60 s, which a busy machine can need
    return f"http://127.0.0.1:{settings.serve.port}"


@dataclass(frozen=True)
class Failed:
    """A question without an answer: its status (0: the connection broke), what was said, when it began and ended."""

    status: int
    said: str
    asked: float
    ended: float
    retry_after: str | None = None


class Questions:
    """Asks again and again, in two threads, whole and streamed; remembers when each answer came and how it ended."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answered: list[float] = []
        self.failed: list[Failed] = []
        self.wrong: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(streamed,)) for streamed in (False, True)]
        for thread in self._threads:
            thread.start()

    def _run(self, streamed: bool) -> None:
        while not self._stopping.wait(0.2):
            asked = time.monotonic()
            try:
                with httpx.Client(timeout=40.0, trust_env=False) as client:  # a new connection: another node's proxy
                    body = QUESTION | {"stream": streamed}
                    answer = client.post(f"{self._url}/v1/chat/completions", json=body)
            except httpx.HTTPError as error:
                self.failed.append(Failed(0, repr(error), asked, time.monotonic()))
                continue
            if answer.status_code != 200:
                retry_after = answer.headers.get("retry-after")
                self.failed.append(Failed(answer.status_code, answer.text, asked, time.monotonic(), retry_after))
            elif '"error"' in answer.text:  # a stream that had begun can only say so inside
                self.failed.append(Failed(0, answer.text[-200:], asked, time.monotonic()))
            elif '"doc_id":"marker"' in answer.text.replace(" ", ""):
                self.answered.append(time.monotonic())
            else:
                self.wrong.append(answer.text)

    def until_answered_after(self, moment: float, within_s: float = 120.0) -> None:
        until(
            lambda: bool(self.answered) and max(self.answered) > moment,
            within_s,
            every_s=0.1,
            seen=lambda: (self.failed, self.wrong[:1]),
        )

    def check(self) -> None:
        """Every answer was right, and whoever got none was told when to come again, or saw the connection break."""
        assert not self.wrong
        refused = [one for one in self.failed if one.status]
        assert {one.status for one in refused} <= {503}, refused
        assert all(one.retry_after for one in refused), refused

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60.0)


def loaded(replicas: int) -> dict[str, str]:
    """{replica: checkpoint that it serves}."""
    handle, found = serve.get_deployment_handle("Engine", app.APP_NAME), dict[str, str]()

    def all_seen() -> bool:
        one = handle.loaded.remote().result(timeout_s=60.0)
        found[one.replica] = one.target["checkpoint"]
        return len(found) >= replicas

    until(all_seen, 120.0, seen=lambda: found)
    return found


def until_loaded(checkpoint: str, replicas: int) -> set[str]:
    """The replicas, once all of them serve this checkpoint."""
    found: dict[str, str] = {}

    def all_have_it() -> bool:
        found.clear()
        found.update(loaded(replicas))
        return set(found.values()) == {checkpoint}

    until(all_have_it, 120.0, every_s=0.2, seen=lambda: found)
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
            death: list[float] = []  # when the node began to die

            def fault() -> None:
                death.append(time.monotonic())
                remove_node(cluster, lost)
                questions.until_answered_after(time.monotonic())

            world.during(600, fault)
            world.check()  # nothing lost, nothing double, every bad record in the dead-letter topic
            questions.until_answered_after(time.monotonic())
            assert "seven million crowns" in helm_test(world, url)
            before = until_loaded(settings.model.checkpoint, settings.serve.replicas)
            deploy(settings, checkpoint="next")  # as `helm upgrade` with another settings.model.checkpoint
            assert until_loaded("next", settings.serve.replicas) == before  # the same replicas: nothing was restarted
            questions.until_answered_after(time.monotonic())
            questions.check()
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


def gateway_node() -> str | None:
    """The node of the gateway that takes questions; None while there is none."""
    details = _get_global_client().get_serve_details()
    replicas = details["applications"][app.APP_NAME]["deployments"]["Gateway"]["replicas"]
    return next((one["node_id"] for one in replicas if one["state"] == "RUNNING"), None)


@pytest.mark.timeout(300 + 120 * DEATHS)
def test_a_gateway_that_dies_with_its_node_costs_no_client_a_500(cluster: Cluster, settings: Settings) -> None:
    desk = Desk(settings.bank.uri)
    desk.publish("marker", "Observatory", MARKER)
    desk.close()
    questions = Questions(deploy(settings, gateway_cpus=0.1))
    try:
        questions.until_answered_after(0.0)
        for death in range(DEATHS):
            lost = until(gateway_node, 120.0)
            remove_node(cluster, lost)
            questions.until_answered_after(time.monotonic())
            until(lambda gone=lost: gateway_node() not in (None, gone), 120.0)
            add_node(cluster, num_cpus=4)
            until(lambda: len(loaded(settings.serve.replicas)) == settings.serve.replicas, 120.0)
            print(f"death {death + 1}: answered {len(questions.answered)}, not {questions.failed}")
            questions.check()
        questions.until_answered_after(time.monotonic())
    finally:
        questions.stop()
    questions.check()
