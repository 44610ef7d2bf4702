"""Opens every reading Kafka client here; and reads all of a topic once, outside any group."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition

from services.errors import BrokerUnreachable, TopicMissing
from services.settings import KafkaSettings
from services.stream.batches import DocumentConsumer
from services.stream.connection import connect, translated_errors
from services.stream.record import RawRecord
from services.stream.topics import topic_partitions

__all__ = ["open_consumer", "read_topic"]

_PATIENCE = 3.0


def read_topic(
    settings: KafkaSettings, bootstrap: str, topic: str, max_records: int | None = None
) -> Iterator[RawRecord]:
    """All records of a topic from the earliest to the present end, outside any group; used to look at dead letters.

    Ends after `max_records`, or when every partition is read to its end, however long the broker takes to answer. Raises
    TopicMissing, BrokerUnreachable (nothing came for three times `connect_timeout_s`) or BrokerError.
    """
    count = topic_partitions(settings, bootstrap, topic)
    if not count:
        raise TopicMissing(f"Kafka topic {topic} does not exist at {bootstrap}")
    consumer = open_consumer(settings, bootstrap)
    try:
        partitions = [TopicPartition(topic, partition) for partition in range(count)]
        consumer.assign(partitions)
        with translated_errors(f"Kafka topic {topic}"):
            ends = consumer.end_offsets(partitions)
        left = max_records
        heard_s = time.monotonic()
        while left != 0 and not all(_is_read(consumer, tp, ends[tp]) for tp in partitions):
            with translated_errors(f"Kafka topic {topic}"):
                polled = consumer.poll(timeout_ms=200, max_records=min(500, left or 500))
            if polled:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _PATIENCE * settings.connect_timeout_s:
                raise BrokerUnreachable(f"Kafka topic {topic}: no answer from {bootstrap}")
            for record in (record for records in polled.values() for record in records):
                yield record
                left = None if left is None else left - 1
    finally:
        consumer.close(autocommit=False, timeout_ms=int(settings.connect_timeout_s * 1000))


def _is_read(consumer: DocumentConsumer, partition: Any, end: int) -> bool:
    """Whether a partition was read to its end; the embedded broker tells the true one with a fetch only."""
    highwater, position = consumer.highwater(partition), consumer.read_up_to(partition)
    return highwater is not None and position is not None and position >= max(end, highwater)


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
