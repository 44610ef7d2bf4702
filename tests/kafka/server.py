"""A real Apache Kafka for tests: KRaft brokers from Maven Central's jars, one or three, killed and started again.

The jars (30 MB) are kept in ~/.cache/cmt/kafka-VERSION. Needs Java 17 and Maven; `missing()` says what is not there.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from tests.integration.conftest import find_free_port

__all__ = ["KAFKA_VERSION", "KafkaCluster", "missing"]

KAFKA_VERSION = "4.1.1"
_POM = Path(__file__).with_name("pom.xml")
_CACHE = Path(os.environ.get("KAFKA_JARS", f"~/.cache/cmt/kafka-{KAFKA_VERSION}")).expanduser()
_FETCH_S = 300.0
_START_S = 120.0
_JVM = ["-Xms64m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_JVM += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]


@functools.cache
def missing() -> str:
    """Why no Kafka can be started here, empty when one can; the first call fetches the jars."""
    absent = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if "java" in absent:
        return "no Apache Kafka: Java is not installed"
    if any(_CACHE.glob("kafka_2.13-*.jar")):
        return ""
    if absent:
        return "no Apache Kafka: Maven, which fetches it, is not installed"
    return _fetch()


def _fetch() -> str:
    _CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE.parent) as folder:
        command = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        command += [f"-Dkafka.version={KAFKA_VERSION}", f"-DoutputDirectory={folder}/jars"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no Apache Kafka: Maven did not fetch it within {_FETCH_S:g} s"
        if done.returncode:
            said = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason given")
            return f"no Apache Kafka: Maven can't fetch it: {said[:200]}"
        with contextlib.suppress(OSError):  # another run was faster
            Path(folder, "jars").rename(_CACHE)
    return ""


class KafkaCluster:
    """Brokers 1 to `nodes` on 127.0.0.1, each a controller, too; all data under `folder`, gone with `stop`.

    `bootstrap` reaches them in clear, where nobody is asked who they are and everything is allowed. With a
    `certificate` (folder with cert.pem and key.pem in clear) `secured_bootstrap` reaches them by SASL_SSL and SCRAM, where
    ACLs decide.
    """

    def __init__(self, folder: Path, nodes: int = 1, certificate: Path | None = None) -> None:
        self._folder = folder
        self._cluster_id = _random_id()
        self._certificate = certificate
        self._ports = {node: (find_free_port(), find_free_port(), find_free_port()) for node in range(1, nodes + 1)}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def nodes(self) -> list[int]:
        """The brokers' numbers."""
        return list(self._ports)

    @property
    def bootstrap(self) -> str:
        """`host:port` of all brokers, for clients that say nothing about themselves."""
        return ",".join(f"127.0.0.1:{ports[0]}" for ports in self._ports.values())

    @property
    def secured_bootstrap(self) -> str:
        """`host:port` of all brokers, for clients with TLS and a password."""
        return ",".join(f"127.0.0.1:{ports[2]}" for ports in self._ports.values())

    def start(self) -> None:
        """Formats the brokers' folders and starts all; AssertionError with their logs when they are not up in time."""
        for node in self._ports:
            home = self._folder / str(node)
            home.mkdir(parents=True)
            lines = [f"{name}={value}" for name, value in self._properties(node).items()]
            (home / "server.properties").write_text("\n".join(lines))
        self._format()
        for node in self._ports:
            self.start_node(node)
        self.wait()

    def _format(self) -> None:
        """The tool formats the first broker's folder; the others' differ by two lines, and a JVM takes seconds to start."""
        first = self._folder / "1"
        self.tool("kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", str(first / "server.properties"))
        for node in self.nodes[1:]:
            data = self._folder / str(node) / "data"
            shutil.copytree(first / "data", data)
            own = {"node.id": str(node), "directory.id": _random_id()}
            lines = (data / "meta.properties").read_text().splitlines()
            names = [line.partition("=")[0] for line in lines]
            changed = [f"{name}={own[name]}" if name in own else line for name, line in zip(names, lines, strict=True)]
            (data / "meta.properties").write_text("\n".join(changed) + "\n")

    def start_node(self, node: int) -> None:
        """Starts a broker that does not run; `wait` waits for it."""
        home = self._folder / str(node)
        with (home / "log").open("ab") as log:
            self._processes[node] = subprocess.Popen(
                ["java", *_JVM, "-cp", f"{_CACHE}/*", "kafka.Kafka", str(home / "server.properties")],
                stdout=log,
                stderr=log,
            )

    def stop_node(self, node: int, timeout_s: float = 60.0) -> None:
        """Stops a broker in order: it hands its partitions to others first."""
        process = self._processes.pop(node)
        process.terminate()
        process.wait(timeout_s)

    def kill_node(self, node: int) -> None:
        """Ends a broker without any warning."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()

    @contextmanager
    def silent(self, *nodes: int) -> Iterator[None]:
        """These brokers, or all, are frozen: connections stay open and nothing answers."""
        frozen = [self._processes[node] for node in nodes or self._processes]
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in frozen:
                process.send_signal(signal.SIGCONT)

    def wait(self) -> None:
        """Until all brokers are there and every partition has all its replicas."""
        end = time.monotonic() + _START_S
        while not self._is_whole():
            for node, process in self._processes.items():
                assert process.poll() is None, f"broker {node} ended: {self._log(node)}"
            assert time.monotonic() < end, "\n".join(self._log(node) for node in self._processes)
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends all brokers and removes their data; repeated calls are fine."""
        for node in list(self._processes):
            self.kill_node(node)
        for node in self._ports:
            shutil.rmtree(self._folder / str(node) / "data", ignore_errors=True)

    def leader(self, topic: str, partition: int = 0) -> int:
        """The broker that leads a partition now."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            (found,) = admin.describe_topics([topic])
            return next(int(one["leader_id"]) for one in found["partitions"] if one["partition_index"] == partition)
        finally:
            admin.close()

    def tool(self, main: str, *arguments: str) -> str:
        """Runs one of Kafka's own command-line tools and gives what it printed; AssertionError when it fails."""
        command = ["java", *_JVM, "-cp", f"{_CACHE}/*", main, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120.0, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _is_whole(self) -> bool:
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2000)
        except (KafkaError, OSError):
            return False
        try:
            brokers = admin.describe_cluster()["brokers"]
            topics = admin.describe_topics()
            return len(brokers) == len(self._ports) and all(
                len(part["isr_nodes"]) == len(part["replica_nodes"]) for topic in topics for part in topic["partitions"]
            )
        except KafkaError:
            return False
        finally:
            admin.close()

    def _log(self, node: int) -> str:
        lines = (self._folder / str(node) / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-12:])

    def _properties(self, node: int) -> Mapping[str, object]:
        plain, controller, secured = self._ports[node]
        copies = len(self._ports)
        addresses = f"PLAINTEXT://127.0.0.1:{plain}" + (f",SASL_SSL://127.0.0.1:{secured}" if self._certificate else "")
        found: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(f"{one}@127.0.0.1:{ports[1]}" for one, ports in self._ports.items()),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{addresses},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": addresses,
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
            "log.dirs": self._folder / str(node) / "data",
            "default.replication.factor": copies,
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 2,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "transaction.state.log.num.partitions": 2,
            "auto.create.topics.enable": "false",
            "message.max.bytes": 10 * 2**20,
            # waits that make sense in a data centre, not in a test
            "group.initial.rebalance.delay.ms": 0,
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 4000,
            "log.initial.task.delay.ms": 500,
            "log.cleaner.backoff.ms": 200,
            "log.retention.check.interval.ms": 500,
            "log.retention.ms": -1,  # tests write records of any time; those about retention ask for it
        }
        if self._certificate:
            found |= {
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": self._certificate / "keystore.pem",
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": self._certificate / "cert.pem",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                ),
            }
        return found


def _random_id() -> str:
    """As Kafka writes its UUIDs; the tools take none that begins with a dash."""
    return "c" + base64.urlsafe_b64encode(uuid.uuid4().bytes)[1:22].decode()
