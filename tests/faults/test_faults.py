"""One stream that runs on while parts of the system die, in this order; after each the bank is exactly what it must be.

make faults            # 100,000 records; `make test` sends 20,000
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import ray

from services.stream.broker import EmbeddedBroker
from tests.faults.stream_model import StreamModel
from tests.faults.world import World, fault_settings, kill_9
from tests.integration.conftest import find_free_port

FAULTS = 10
RECORDS = int(os.environ.get("FAULT_RECORDS", "20000")) // FAULTS
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    with EmbeddedBroker(find_free_port()) as broker:
        folder = tmp_path_factory.mktemp("faults")
        made = World(broker, fault_settings(folder, folder.name), StreamModel(seed=7))
        made.start()
        yield made
        made.handle.kill()
    ray.shutdown()


def test_a_consumer_dies(world: World) -> None:
    world.during(RECORDS, lambda: kill_9(world.handle.consumers[0]) and None)
    world.check()


def test_a_compressor_dies(world: World) -> None:
    world.during(RECORDS, lambda: kill_9(world.handle.compressors[0]) and None)
    world.check()


def test_the_writer_dies(world: World) -> None:
    world.during(RECORDS, lambda: kill_9(world.handle.writer) and None)
    world.check()


def test_the_coordinator_dies_and_a_consumer_after_it(world: World) -> None:
    def fault() -> None:
        kill_9(world.handle.coordinator)
        kill_9(world.handle.consumers[1])

    world.during(RECORDS, fault)
    world.check()


def test_the_broker_does_not_answer_for_ten_seconds(world: World) -> None:
    def fault() -> None:
        with world.silent_broker():
            time.sleep(10.0)

    world.during(RECORDS, fault)
    world.check()


def test_bank_commits_fail_for_a_while(world: World) -> None:
    def fault() -> None:
        with world.failing_bank():
            time.sleep(4.0)

    world.during(RECORDS, fault)
    world.check()


def test_a_consumer_joins(world: World) -> None:
    world.during(RECORDS, lambda: world.handle.add_consumer() and None)
    world.check()
    assigned = ray.get(world.handle.coordinator.status.remote()).assigned
    assert sorted(map(len, assigned.values())) == [1, 1, 2]


def test_a_consumer_leaves(world: World) -> None:
    world.during(RECORDS, lambda: world.handle.remove_consumer(10.0))
    world.check()


def test_ingest_is_stopped_and_started_again(world: World) -> None:
    def fault() -> None:
        world.handle.stop(20.0)
        world.start()

    world.during(RECORDS, fault)
    world.check()


def test_everything_dies_at_once_and_is_started_again(world: World) -> None:
    def fault() -> None:
        world.handle.kill()
        world.start()

    world.during(RECORDS, fault)
    world.check()
