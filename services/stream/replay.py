"""Sends dead letters again, as the records that they were, and remembers which ones have been sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from services.errors import RecordsRefused
from services.settings import KafkaSettings
from services.stream.connection import translated_errors
from services.stream.dead_letter_reader import DeadLetter, read_letters
from services.stream.producer import DocumentProducer
from services.stream.reading import open_consumer
from services.stream.topics import topic_partitions

__all__ = ["ReplayReport", "replay"]

_log = logging.getLogger(__name__)
_FLUSH_S = 60.0


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """Letters sent again, left out because an earlier replay had sent them, and impossible to send (they hold no record, or the
    topic takes none so large)."""

    sent: int = 0
    earlier: int = 0
    impossible: int = 0


def replay(settings: KafkaSettings, bootstrap: str, chosen: Callable[[DeadLetter], bool] | None = None) -> ReplayReport:
    """Sends the chosen letters, or with None all that no earlier replay of all has sent, to the document topic.

    Key, value, timestamp and headers are those of the record, and a header keeps its place in the order of versions: a
    newer version that has come meanwhile stays. Raises BrokerError when not all were delivered that the topic takes; then none
    counts as sent.
    """
    marks = _Marks(settings, bootstrap)
    try:
        done = marks.read()
        sent = earlier = impossible = 0
        with DocumentProducer(settings, bootstrap) as producer:
            for letter in read_letters(settings, bootstrap):
                if chosen is None and letter.letter_offset < done.get(letter.letter_partition, 0):
                    earlier += 1
                    continue
                marks.seen(letter)
                if not letter.reason or (chosen is not None and not chosen(letter)):
                    continue
                if not letter.whole:
                    impossible += 1
                    continue
                headers = (*letter.headers, *letter.place_header)
                producer.send_raw(letter.key, letter.value, headers, _timestamp_ms(letter))
                sent += 1
            try:
                producer.flush(_FLUSH_S)
            except RecordsRefused as error:  # for a topic that takes less than the dead-letter topic does
                _log.warning("%s", error)
                impossible += error.count
                sent -= error.count
        if chosen is None:
            marks.write()
        return ReplayReport(sent, earlier, impossible)
    finally:
        marks.close()


def _timestamp_ms(letter: DeadLetter) -> int | None:
    """The record's own time, or None (now) for one without, or with one that lies ahead: brokers refuse it."""
    return letter.timestamp_ms if 0 < letter.timestamp_ms <= time.time() * 1000 else None


class _Marks:
    """Up to where all letters were replayed: committed offsets of a group of its own on the dead-letter topic."""

    def __init__(self, settings: KafkaSettings, bootstrap: str) -> None:
        self._topic = settings.dlq_topic
        self._timeout_ms = int(settings.connect_timeout_s * 1000)
        self._partitions = topic_partitions(settings, bootstrap, settings.dlq_topic)
        group = f"{settings.group_id}.dlq-replay"
        self._consumer: Any = open_consumer(settings, bootstrap, group_id=group)
        self._next: dict[int, int] = {}

    def read(self) -> dict[int, int]:
        with translated_errors(f"Kafka topic {self._topic}"):
            parts = [TopicPartition(self._topic, one) for one in range(self._partitions)]
            return {tp.partition: self._consumer.committed(tp) or 0 for tp in parts}

    def seen(self, letter: DeadLetter) -> None:
        self._next[letter.letter_partition] = letter.letter_offset + 1

    def write(self) -> None:
        if not self._next:
            return
        with translated_errors(f"Kafka topic {self._topic}"):
            parts = {TopicPartition(self._topic, one): offset for one, offset in self._next.items()}
            self._consumer.assign(list(parts))
            self._consumer.commit(
                {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in parts.items()}, timeout_ms=self._timeout_ms
            )

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=self._timeout_ms)
