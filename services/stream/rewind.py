"""Moves a group's committed offsets back, so that ingest reads records again: the bank takes repeats for what they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from services.errors import TopicMissing
from services.settings import KafkaSettings
from services.stream.connection import translated_errors
from services.stream.reading import open_consumer
from services.stream.topics import topic_partitions

__all__ = ["rewind"]

_IDLE_S = 2.0
_AHEAD_MS = 24 * 3600 * 1000


def rewind(settings: KafkaSettings, bootstrap: str, to: datetime | None) -> dict[int, int]:
    """Commits the first offset of every partition, or with `to` (aware) that of its first record of then or later.

    Returns {partition: offset}. Nothing may read as a member of the group meanwhile: then Kafka refuses, and
    BrokerError is raised, as when it does not answer; TopicMissing when there is no topic.
    """
    count = topic_partitions(settings, bootstrap, settings.topic)
    if not count:
        raise TopicMissing(f"Kafka topic {settings.topic} does not exist at {bootstrap}")
    consumer = open_consumer(settings, bootstrap, group_id=settings.group_id)
    try:
        with translated_errors(f"Kafka group {settings.group_id}"):
            partitions = [TopicPartition(settings.topic, number) for number in range(count)]
            consumer.assign(partitions)
            found = consumer.beginning_offsets(partitions) if to is None else _offsets_at(consumer, partitions, to)
            wanted = {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in found.items()}
            consumer.assign(partitions)
            consumer.commit(wanted, timeout_ms=int(settings.connect_timeout_s * 1000))
            return {tp.partition: offset for tp, offset in found.items()}
    finally:
        consumer.close(autocommit=False, timeout_ms=int(settings.connect_timeout_s * 1000))


def _offsets_at(consumer: Any, partitions: list[Any], to: datetime) -> dict[Any, int]:
    """By the broker's time index, read on from there until the time fits.

    The embedded broker's index says too little, and every index is led astray by a record whose producer wrote a time far
    ahead: it stands for all that follow.
    """
    wanted_ms = max(0, int(to.timestamp() * 1000))
    answers = consumer.offsets_for_times(dict.fromkeys(partitions, wanted_ms))
    found = {tp: end for tp, end in consumer.end_offsets(partitions).items() if answers.get(tp) is None}
    start = {tp: answers[tp].offset for tp in partitions if tp not in found}
    return found | _read_up_to(consumer, start, wanted_ms)


def _read_up_to(consumer: Any, start: Mapping[Any, int], wanted_ms: int) -> dict[Any, int]:
    """The offset of the first record of each partition that is not older, else the one behind its last.

    Times more than a day ahead are no times, unless a time ahead is asked for.
    """
    latest_ms = max(wanted_ms, int(time.time() * 1000)) + _AHEAD_MS
    consumer.assign(list(start))
    for tp, offset in start.items():
        consumer.seek(tp, offset)
    found: dict[Any, int] = {}
    behind = dict(start)
    quiet_since = time.monotonic()
    while len(found) < len(start) and time.monotonic() - quiet_since < _IDLE_S:
        for tp, records in consumer.poll(timeout_ms=200, max_records=500).items():
            quiet_since = time.monotonic()
            behind[tp] = records[-1].offset + records[-1].covers
            first = next((one.offset for one in records if wanted_ms <= one.timestamp_ms <= latest_ms), None)
            if first is not None and tp not in found:
                found[tp] = first
                consumer.pause(tp)
    return behind | found
