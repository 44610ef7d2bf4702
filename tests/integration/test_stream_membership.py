"""Joins of a group that end between two polls: taken up by the next poll, whatever the rhythm of the polls."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from services.settings import KafkaSettings
from services.stream.source import KafkaSource
from tests.waiting import until

WAIT_S = 60.0


def join_ends_unseen(source: KafkaSource) -> None:
    """Polls until a join is under way, and then not again before it has ended."""
    coordinator = source._consumer._coordinator

    def under_way() -> bool:
        source.poll(0.05, 1)
        return bool(coordinator._join_task and coordinator._generation.has_member_id())

    until(under_way, WAIT_S)
    until(lambda: coordinator._join_task is None or coordinator._join_task.is_done, WAIT_S)


def joins_of(source: KafkaSource) -> Callable[[], int]:
    """How many joins the client has begun from now on."""
    coordinator = source._consumer._coordinator
    begun = []
    join = coordinator._do_join_and_sync_async

    async def counted() -> bytes:
        begun.append(time.monotonic())
        return bytes(await join())

    coordinator._do_join_and_sync_async = counted
    return lambda: len(begun)


def test_join_that_ends_between_two_polls_gives_its_partitions(broker: str, kafka_settings: KafkaSettings) -> None:
    with KafkaSource(kafka_settings, broker) as source:
        join_ends_unseen(source)
        joins = joins_of(source)
        source.poll(0.2, 1)
        assert source.assigned() == {0, 1}
        assert joins() == 0


def test_share_of_a_second_member_is_taken_up_too(broker: str, kafka_settings: KafkaSettings) -> None:
    with KafkaSource(kafka_settings, broker) as first:
        until(lambda: first.poll(0.1, 1) == [] and first.assigned() == {0, 1}, WAIT_S)
        with KafkaSource(kafka_settings, broker) as second:

            def shared() -> bool:
                for source in (first, second):
                    source.poll(0.02, 1)
                    time.sleep(0.15)  # a join ends in here nine times of ten
                return len(first.assigned()) == len(second.assigned()) == 1

            until(shared, WAIT_S)


@pytest.mark.parametrize("poll_s", [0.0, 0.005, 0.05])
def test_any_rhythm_of_polls_comes_to_partitions_by_one_join(
    poll_s: float, broker: str, kafka_settings: KafkaSettings
) -> None:
    with KafkaSource(kafka_settings, broker) as source:
        joins = joins_of(source)

        def assigned() -> bool:
            source.poll(poll_s, 1)
            time.sleep(0.4)
            return source.assigned() == {0, 1}

        until(assigned, WAIT_S)
        assert joins() <= 2  # the first is told its member's id only
