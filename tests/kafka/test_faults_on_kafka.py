"""The stream of tests/faults on three Kafka brokers, which die, too; after each fault the bank is exactly what it must be.

make test-kafka        # 10,000 records through every fault; `make test` sends 2,000 through those that concern the brokers
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from kafka.admin import KafkaAdminClient

from services.stream.producer import DocumentProducer
from services.stream.record import Document
from services.stream.topic_identity import topic_identity
from tests.faults.stream_model import StreamModel
from tests.faults.test_faults import (
    RECORDS,
    test_everything_dies_at_once_and_is_started_again,
    test_the_broker_does_not_answer_for_ten_seconds,
    test_the_writer_dies,
)
from tests.faults.world import World, fault_settings
from tests.kafka.server import KafkaCluster
from tests.waiting import until

if RECORDS >= 10_000:
    from tests.faults.test_faults import (
        test_a_compressor_dies,
        test_a_consumer_dies,
        test_a_consumer_joins,
        test_a_consumer_leaves,
        test_bank_commits_fail_for_a_while,
        test_ingest_is_stopped_and_started_again,
        test_the_coordinator_dies_and_a_consumer_after_it,
    )

    __all__ = [
        "test_a_compressor_dies",
        "test_a_consumer_dies",
        "test_a_consumer_joins",
        "test_a_consumer_leaves",
        "test_bank_commits_fail_for_a_while",
        "test_ingest_is_stopped_and_started_again",
        "test_the_coordinator_dies_and_a_consumer_after_it",
    ]
else:
    __all__ = []

__all__ += [
    "test_everything_dies_at_once_and_is_started_again",
    "test_the_broker_does_not_answer_for_ten_seconds",
    "test_the_writer_dies",
]

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, kafka_can_run: None) -> Iterator[KafkaCluster]:
    """Three brokers; every partition is on all of them, and two have to have a record."""
    made = KafkaCluster(tmp_path_factory.mktemp("cluster"), nodes=3)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def world(cluster: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    folder = tmp_path_factory.mktemp("faults")
    settings = fault_settings(
        folder, folder.name, kafka__bootstrap_servers=cluster.bootstrap, kafka__connect_timeout_s=15
    )
    made = World(cluster, settings, StreamModel(seed=11))
    made.start()
    yield made
    made.handle.kill()
    ray.shutdown()


def test_the_leader_of_a_partition_is_killed(world: World, cluster: KafkaCluster) -> None:
    leader = cluster.leader(world.settings.kafka.topic)
    world.during(RECORDS, lambda: cluster.kill_node(leader))
    cluster.start_node(leader)
    cluster.wait()
    world.check()


def test_all_brokers_are_restarted_one_after_the_other(world: World, cluster: KafkaCluster) -> None:
    def roll() -> None:
        for node in cluster.nodes:
            cluster.stop_node(node)
            cluster.start_node(node)
            cluster.wait()

    world.during(RECORDS, roll)
    world.check()


def test_partitions_are_added_while_documents_come(world: World, cluster: KafkaCluster) -> None:
    def add() -> None:
        admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap)
        try:
            admin.create_partitions({world.settings.kafka.topic: 6})
        finally:
            admin.close()

    world.during(RECORDS, add)
    world.check()
    until(lambda: ray.get(world.handle.coordinator.status.remote()).partitions == 6, 30.0)


@pytest.mark.parametrize("refilled", [20, 60], ids=["below", "beyond where the old one was read"])
def test_a_topic_that_is_deleted_and_made_again_is_read_from_its_beginning(
    world: World, cluster: KafkaCluster, refilled: int
) -> None:
    kafka, prefix = world.settings.kafka, f"anew{refilled}-"

    def sent(text: str, *numbers: int) -> None:
        with DocumentProducer(kafka, cluster.bootstrap) as producer:
            for number in numbers:
                producer.send(Document(f"{prefix}{number}", f"{text} {number}"))
            producer.flush(60.0)

    def texts() -> dict[str, list[str]]:
        return {name: found for (_, name), found in world.live_texts().items() if name.startswith(prefix)}

    sent("Before the deletion, report", *range(20))
    until(lambda: len(texts()) == 20, 60.0)
    before = topic_identity(kafka, cluster.bootstrap)
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    try:
        admin.delete_topics([kafka.topic])
        until(lambda: not [one for one in admin.describe_topics() if one["name"] == kafka.topic], 30.0)
    finally:
        admin.close()
    sent("After the deletion, report", *range(10, 10 + refilled))
    assert topic_identity(kafka, cluster.bootstrap) != before
    until(lambda: sum(found[0].startswith("After") for found in texts().values()) == refilled, 90.0, seen=texts)
    assert len(texts()) == 10 + refilled
    world.handle.raise_if_failed()
