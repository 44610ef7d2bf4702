"""Writes records that can't be read to the dead-letter topic, so that none is dropped silently."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from services.errors import BrokerError, RecordError
from services.settings import KafkaSettings
from services.stream.connection import translated_errors
from services.stream.producer import open_producer
from services.stream.record import RawRecord
from services.stream.topics import ensure_topics

__all__ = ["HEADER_PREFIX", "NULL_VALUE_HEADER", "DeadLetters"]

HEADER_PREFIX = "cmt-"
# A Kafka client refuses to send a record with neither key nor value: such a one travels with an empty value.
NULL_VALUE_HEADER = "cmt-null-value"
_ERROR_CHARS = 1000


class DeadLetters:
    """The dead-letter topic of a document topic; `send` blocks until the broker has the record."""

    def __init__(self, settings: KafkaSettings, bootstrap: str) -> None:
        """Raises BrokerUnreachable, or TopicMissing when the topic is missing and may not be created."""
        ensure_topics(settings, bootstrap)
        self._topic = settings.dlq_topic
        self._timeout_s = settings.connect_timeout_s
        self._producer = open_producer(settings, bootstrap)

    def send(self, record: RawRecord, error: RecordError) -> None:
        """Keeps a record: key, value and headers untouched, and headers `cmt-*` that say why, from where and when.

        The added headers are reason, error, topic, partition, offset, time (RFC 3339) and, from ingest, epoch; those of an
        earlier stay in the dead-letter topic are replaced. Raises BrokerError when the broker does not acknowledge the
        record.
        """
        problem = self._acknowledged(self._queued(record, error))
        if problem is not None:
            raise problem

    def _queued(self, record: RawRecord, error: RecordError, epoch: int | None = None) -> Any:
        """The producer's future, or the BrokerError that keeps the record out of its queue."""
        added = _headers(record, error, epoch)
        names = {name for name, _ in added}
        headers = [header for header in record.headers if header[0] not in names] + added
        value = record.value
        if record.key is None and value is None:
            headers.append((NULL_VALUE_HEADER, b"1"))
            value = b""
        try:
            with translated_errors(f"dead-letter topic {self._topic}"):
                return self._producer.send(
                    self._topic, key=record.key, value=value, headers=headers, timestamp_ms=_timestamp(record)
                )
        except BrokerError as problem:
            return problem

    def _acknowledged(self, queued: Any) -> BrokerError | None:
        if isinstance(queued, BrokerError):
            return queued
        try:
            with translated_errors(f"dead-letter topic {self._topic}"):
                # the producer itself gives up after three times this time; the fourth is for its thread to say so
                queued.get(timeout=4 * self._timeout_s)
        except BrokerError as problem:
            return problem
        return None

    def send_all(self, letters: Sequence[tuple[RawRecord, RecordError, int]]) -> list[BrokerError | None]:
        """Keeps records as `send` does, all under way at once; for each None when it is safe, or why it is not.

        The number of each is the topic's epoch, which a replay needs to keep the record's place.
        """
        queued = [self._queued(record, error, epoch) for record, error, epoch in letters]
        return [self._acknowledged(one) for one in queued]

    def close(self) -> None:
        """Disconnects; nothing is pending, since `send` waits."""
        with translated_errors(f"dead-letter topic {self._topic}"):
            self._producer.close(timeout=self._timeout_s)

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _timestamp(record: RawRecord) -> int | None:
    """The letter keeps the record's own time, so that a replay keeps it too."""
    return record.timestamp_ms if record.timestamp_ms > 0 else None


def _headers(record: RawRecord, error: RecordError, epoch: int | None) -> list[tuple[str, bytes]]:
    facts = {
        "reason": error.reason,
        "error": str(error)[:_ERROR_CHARS],
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        **({} if epoch is None else {"epoch": str(epoch)}),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return [(HEADER_PREFIX + name, fact.encode(errors="replace")) for name, fact in facts.items()]
