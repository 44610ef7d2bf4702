"""Ctrl-C and SIGTERM as an operator sends them: to a process, in the middle of the stream."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.ingest.drain import drain
from services.stream.broker import EmbeddedBroker
from tests.faults.stream_model import StreamModel
from tests.faults.world import World, fault_settings
from tests.integration.conftest import find_free_port
from tests.waiting import until

RECORDS = 600
START_S = 90.0
STOP_S = 45.0


class NoFailure:
    """Stands where a handle is expected: the process tells its failure by its exit code."""

    def raise_if_failed(self) -> None:
        pass

    def status(self) -> str:
        return "see the process"


class SilentWorld(World):
    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        values = self.settings
        environment = os.environ | {
            "CMT_KAFKA__BOOTSTRAP_SERVERS": self.broker.bootstrap,
            "CMT_KAFKA__TOPIC": values.kafka.topic,
            "CMT_KAFKA__GROUP_ID": values.kafka.group_id,
            "CMT_KAFKA__MAX_RECORD_BYTES": str(values.kafka.max_record_bytes),
            "CMT_BANK__URI": values.bank.uri,
            "CMT_BANK__MIN_FREE_BYTES": "0",
            "CMT_INGEST__BATCH_WINDOWS": "8",
            "CMT_INGEST__BATCH_WAIT_S": "0.05",
        }
        command = [sys.executable, "-m", "tests.faults.ingest_process", *arguments]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    def wait_until_some_is_committed(self, process: subprocess.Popen[bytes], at_least: int) -> None:
        def committed() -> bool:
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            return self.committed() >= at_least

        until(committed, START_S, every_s=0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SilentWorld]:
    with EmbeddedBroker(find_free_port()) as broker:
        made = SilentWorld(broker, fault_settings(tmp_path, tmp_path.name), StreamModel(seed=11), rate_per_s=300.0)
        made.handle = NoFailure()  # type: ignore[assignment]
        yield made


@pytest.mark.timeout(400)
def test_sigterm_flushes_and_a_second_one_ends_at_once_and_nothing_is_lost(world: SilentWorld) -> None:
    first = world.spawn()

    def terminate() -> None:
        world.wait_until_some_is_committed(first, 50)
        assert drain(world.settings)  # SIGTERM, as a pod's preStop hook sends it
        assert first.wait(STOP_S) == 0
        assert not drain(world.settings)

    world.during(RECORDS, terminate)
    committed = world.committed()
    assert committed > 0
    assert first.stderr is not None
    assert b"flushing what is in flight" in first.stderr.read()

    second = world.spawn()

    def terminate_twice() -> None:
        world.wait_until_some_is_committed(second, committed + 50)
        second.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        second.send_signal(signal.SIGTERM)
        assert second.wait(STOP_S) == -signal.SIGTERM

    world.during(RECORDS, terminate_twice)
    third = world.spawn("--until-caught-up")
    assert third.wait(START_S) == 0, third.stderr.read() if third.stderr else ""
    world.check()
