"""Writes records that can't be read to the dead-letter topic, so that none is dropped silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from services.errors import BrokerError, RecordError
from services.settings import KafkaSettings
from services.stream.connection import translated_errors
from services.stream.producer import open_producer
from services.stream.record import RawRecord
from services.stream.topics import ensure_topics

__all__ = ["HEADER_PREFIX", "LEFT_OUT_HEADER", "NULL_VALUE_HEADER", "TIMESTAMP_HEADER", "DeadLetters"]

HEADER_PREFIX = "cmt-"
# A Kafka client refuses to send a record with neither key nor value: such a one travels with an empty value.
NULL_VALUE_HEADER = "cmt-null-value"
# What a record holds may be more than the dead-letter topic takes: then the letter only names its place.
LEFT_OUT_HEADER = "cmt-left-out"
# A letter has a time of its own: by the record's, retention could remove it at once, or the broker refuse it.
TIMESTAMP_HEADER = "cmt-timestamp"
_ERROR_CHARS = 1000
_NEVER_TAKEN = (MessageSizeTooLargeError, RecordListTooLargeError, TypeError, ValueError)


class DeadLetters:
    """The dead-letter topic of a document topic; `send` blocks until the broker has the record."""

    def __init__(self, settings: KafkaSettings, bootstrap: str) -> None:
        """Raises BrokerUnreachable, or TopicMissing when the topic is missing and may not be created."""
        ensure_topics(settings, bootstrap)
        self._topic = settings.dlq_topic
        self._timeout_s = settings.connect_timeout_s
        # a letter may be there twice, and out of order: its readers count it once
        self._producer = open_producer(settings, bootstrap, in_order=False)

    def send(self, record: RawRecord, error: RecordError) -> None:
        """Keeps a record: key, value and headers untouched, and headers `cmt-*` that say why, from where and when.

        The added headers are reason, error, topic, partition, offset, timestamp (the record's, milliseconds), time
        (RFC 3339) and, from ingest, epoch; those of an earlier stay in the dead-letter topic are replaced. Of a record
        that the topic can't take, the letter keeps only these. Raises BrokerError when the broker does not acknowledge it.
        """
        problem = self._kept(_letter(record, error, None))
        if problem is not None:
            raise problem

    def send_all(self, letters: Sequence[tuple[RawRecord, RecordError, int]]) -> list[BrokerError | None]:
        """Keeps records as `send` does, all under way at once; for each None when it is safe, or why it is not.

        The number of each is the topic's epoch, which a replay needs to keep the record's place.
        """
        queued = [(one, self._queued(one)) for one in (_letter(*letter) for letter in letters)]
        return [self._kept(letter, under_way) for letter, under_way in queued]

    def _kept(self, letter: _Letter, under_way: Any = None) -> BrokerError | None:
        problem = self._acknowledged(under_way or self._queued(letter))
        if problem is not None and isinstance(problem.__cause__, _NEVER_TAKEN):
            return self._acknowledged(self._queued(letter.without_contents()))
        return problem

    def _queued(self, letter: _Letter) -> Any:
        """The producer's future, or the BrokerError that keeps the letter out of its queue."""
        try:
            with translated_errors(f"dead-letter topic {self._topic}"):
                return self._producer.send(self._topic, key=letter.key, value=letter.value, headers=letter.headers)
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


@dataclass(frozen=True, slots=True)
class _Letter:
    """A Kafka record of the dead-letter topic; the last `n_facts` headers are ours."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    n_facts: int

    def without_contents(self) -> _Letter:
        facts = self.headers[-self.n_facts :]
        contents = f"{len(self.key or b'')} bytes of key, {len(self.value or b'')} of value, "
        contents += f"{len(self.headers) - self.n_facts} headers"
        return _Letter(None, b"", [*facts, (LEFT_OUT_HEADER, contents.encode())], self.n_facts + 1)


def _letter(record: RawRecord, error: RecordError, epoch: int | None) -> _Letter:
    facts = _facts(record, error, epoch)
    value = record.value
    if record.key is None and value is None:
        facts.append((NULL_VALUE_HEADER, b"1"))
        value = b""
    names = {NULL_VALUE_HEADER, LEFT_OUT_HEADER} | {name for name, _ in facts}
    own = [header for header in record.headers if header[0] not in names]
    return _Letter(record.key, value, own + facts, len(facts))


def _facts(record: RawRecord, error: RecordError, epoch: int | None) -> list[tuple[str, bytes]]:
    facts = {
        "reason": error.reason,
        "error": str(error)[:_ERROR_CHARS],
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp_ms),
        **({} if epoch is None else {"epoch": str(epoch)}),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return [(HEADER_PREFIX + name, fact.encode(errors="replace")) for name, fact in facts.items()]
