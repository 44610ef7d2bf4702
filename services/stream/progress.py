"""How far ingest has come, from committed offsets and end offsets alone: right also when nothing runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition

from services.errors import TopicMissing
from services.settings import KafkaSettings
from services.stream.connection import translated_errors
from services.stream.reading import open_consumer
from services.stream.topics import topic_partitions

__all__ = ["PartitionProgress", "partition_progress"]

_PEEK_S = 3.0


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """One partition: NEXT offset to read (None before the first commit), end offset, lag (records), and the age of the
    oldest record that is not committed (seconds; None without any, or without a time)."""

    partition: int
    committed: int | None
    end: int
    lag: int
    oldest_age_s: float | None


def partition_progress(settings: KafkaSettings, bootstrap: str) -> list[PartitionProgress]:
    """All partitions of the topic; joins no group and moves nothing.

    Raises TopicMissing, BrokerUnreachable or BrokerError.
    """
    count = topic_partitions(settings, bootstrap, settings.topic)
    if not count:
        raise TopicMissing(f"Kafka topic {settings.topic} does not exist at {bootstrap}")
    consumer = open_consumer(settings, bootstrap, group_id=settings.group_id)
    try:
        with translated_errors(f"Kafka topic {settings.topic}"):
            return _progress(consumer, [TopicPartition(settings.topic, number) for number in range(count)])
    finally:
        consumer.close(autocommit=False, timeout_ms=int(settings.connect_timeout_s * 1000))


def _progress(consumer: Any, partitions: list[Any]) -> list[PartitionProgress]:
    consumer.assign(partitions)
    committed = {tp: consumer.committed(tp) for tp in partitions}
    first = consumer.beginning_offsets(partitions)
    start = {tp: max(committed[tp] or 0, first[tp]) for tp in partitions}
    for tp in partitions:
        consumer.seek(tp, start[tp])
    oldest_ms = _peek(consumer, partitions)
    ends = consumer.end_offsets(partitions)
    found = []
    for tp in partitions:
        end = max(ends[tp], consumer.highwater(tp) or 0, start[tp])  # some brokers report the end too low
        known = oldest_ms.get(tp, -1) > 0 and end > start[tp]
        age_s = max(0.0, time.time() - oldest_ms[tp] / 1000) if known else None
        found.append(PartitionProgress(tp.partition, committed[tp], end, end - start[tp], age_s))
    return found


def _peek(consumer: Any, partitions: Iterable[Any]) -> dict[Any, int]:
    """The timestamp (ms) of the first record of each partition that has one; one answer tells all that are at their end."""
    oldest: dict[Any, int] = {}
    deadline = time.monotonic() + _PEEK_S
    waiting = set(partitions)
    while waiting and time.monotonic() < deadline:
        for tp, records in consumer.poll(timeout_ms=200, max_records=500).items():
            oldest.setdefault(tp, records[0].timestamp_ms)
            consumer.pause(tp)
        waiting = {tp for tp in waiting if tp not in oldest and consumer.highwater(tp) is None}
        waiting |= {tp for tp in waiting if tp not in oldest and (consumer.highwater(tp) or 0) > consumer.position(tp)}
    return oldest
