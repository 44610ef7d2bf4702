"""Opens every reading Kafka client here; and reads all of a topic once, outside any group."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition

from services.errors import TopicMissing
from services.settings import KafkaSettings
from services.stream.batches import DocumentConsumer
from services.stream.connection import connect, translated_errors
from services.stream.record import RawRecord
from services.stream.topics import topic_partitions

__all__ = ["open_consumer", "read_topic"]


def read_topic(
    settings: KafkaSettings, bootstrap: str, topic: str, max_records: int | None = None, idle_s: float = 1.0
) -> Iterator[RawRecord]:
    """All records of a topic from the earliest to the present end, outside any group; used to look at dead letters.

    Ends after `max_records`, or when nothing came for `idle_s` seconds. Raises TopicMissing, BrokerUnreachable or
    BrokerError.
    """
    count = topic_partitions(settings, bootstrap, topic)
    if not count:
        raise TopicMissing(f"Kafka topic {topic} does not exist at {bootstrap}")
    consumer = open_consumer(settings, bootstrap)
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(count)])
        left = max_records
        quiet_since = time.monotonic()
        while left != 0 and time.monotonic() - quiet_since < idle_s:
            with translated_errors(f"Kafka topic {topic}"):
                polled = consumer.poll(timeout_ms=200, max_records=min(500, left or 500))
            for record in (record for records in polled.values() for record in records):
                yield record
                left = None if left is None else left - 1
                quiet_since = time.monotonic()
    finally:
        consumer.close(autocommit=False, timeout_ms=int(settings.connect_timeout_s * 1000))


def open_consumer(settings: KafkaSettings, bootstrap: str, **options: Any) -> DocumentConsumer:
    """A consumer that never commits by itself and starts at the earliest record; `options` are kafka-python's further ones.

    Raises BrokerUnreachable or BrokerError.
    """
    return connect(
        DocumentConsumer,
        settings,
        bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        metrics_enabled=False,
        isolation_level=settings.isolation_level,
        max_partition_fetch_bytes=max(2**20, 2 * settings.max_record_bytes),
        **options,
    )
