"""The other ways to run: Kafka's own group gives out the partitions, and the compressor pool follows the lag."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import ray

from cmt_core.text.windows import Window
from services.settings import Settings
from services.stream.broker import EmbeddedBroker
from services.testing.lexical import LexicalMemory, LexicalModel
from tests.faults.stream_model import StreamModel
from tests.faults.world import World, fault_settings, kill_9
from tests.integration.conftest import find_free_port
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)


def slow_lexical(settings: Settings) -> LexicalModel:
    """Takes 20 ms a window, so that a lag builds up."""

    class Slow(LexicalModel):
        def compress(self, windows: Sequence[Window]) -> list[LexicalMemory]:
            time.sleep(0.02 * len(windows))
            return super().compress(windows)

    return Slow()


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    # this module is not importable in Ray's workers, so its functions travel by value
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with EmbeddedBroker(find_free_port()) as running:
        yield running
    ray.shutdown()


def world(broker: EmbeddedBroker, folder: Any, **flags: Any) -> World:
    return World(broker, fault_settings(folder, folder.name, **flags), StreamModel(seed=3), rate_per_s=400.0)


def test_kafkas_group_loses_nothing_when_a_member_dies_and_another_joins(broker: EmbeddedBroker, tmp_path: Any) -> None:
    grouped = world(broker, tmp_path, ingest__assignment="group", ingest__compressors=1)
    grouped.start()
    try:

        def fault() -> None:
            kill_9(grouped.handle.consumers[0])
            grouped.handle.add_consumer()

        grouped.during(600, fault)
        grouped.check()
    finally:
        grouped.handle.kill()


def test_the_pool_grows_with_the_lag_and_survives_the_coordinator(broker: EmbeddedBroker, tmp_path: Any) -> None:
    pooled = world(
        broker,
        tmp_path,
        ingest__consumers=1,
        ingest__compressors=1,
        ingest__max_compressors=2,
        ingest__grow_at_lag_records=20,
    )
    pooled.model_factory = slow_lexical
    pooled.start()
    try:

        def until_grown() -> None:
            until(lambda: ray.get(pooled.handle.coordinator.status.remote()).compressors >= 2, 60.0, every_s=0.1)
            kill_9(pooled.handle.coordinator)  # what it had added dies with it

        pooled.during(900, until_grown)
        pooled.check()
    finally:
        pooled.handle.kill()
