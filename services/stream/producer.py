"""Writes documents and deletions to the topic, every record acknowledged by all in-sync replicas."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from kafka import KafkaProducer
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from services.errors import BrokerError, BrokerUnreachable, RecordsRefused
from services.settings import KafkaSettings
from services.stream.connection import connect, translated_errors
from services.stream.record import CONTENT_TYPE, CONTENT_TYPE_HEADER, NAMESPACE_HEADER, SEQ_HEADER, Document
from services.stream.topics import ensure_topics

__all__ = ["DocumentProducer", "open_producer"]

# What a broker accepts is the broker's setting, so the client's own limit only has to be out of its way.
_MAX_REQUEST_BYTES = 64 * 2**20
_NEVER_TAKEN = (MessageSizeTooLargeError, RecordListTooLargeError)
_NAMED = 3  # of the records that were refused
_OWN_SHAPE = [(CONTENT_TYPE_HEADER, CONTENT_TYPE)]


def open_producer(settings: KafkaSettings, bootstrap: str, *, in_order: bool = True) -> Any:
    """A kafka-python producer: acknowledged by all replicas, no automatic topics; one batch at a time when `in_order`.

    A record that is not delivered within three times `connect_timeout_s` fails. A record may be there twice after a broken
    connection: an idempotent producer would prevent that, but one record that the broker refuses (too large) ends it for
    all that follow.
    """
    timeout_ms = int(settings.connect_timeout_s * 1000)
    return connect(
        KafkaProducer,
        settings,
        bootstrap,
        acks="all",
        enable_idempotence=False,
        max_in_flight_requests_per_connection=1 if in_order else 5,
        allow_auto_create_topics=False,
        linger_ms=5,
        batch_size=256 * 1024,
        max_request_size=_MAX_REQUEST_BYTES,
        max_block_ms=timeout_ms,
        request_timeout_ms=timeout_ms,
        delivery_timeout_ms=3 * timeout_ms,
    )


class DocumentProducer:
    """Sends to the document topic; records of one id share a partition and keep their order.

    Sending only queues. `flush` waits, and is where a failed delivery is told; `acknowledged` counts what has arrived. A record
    that is there twice changes nothing: the bank takes the second for a version with the same text.
    """

    def __init__(self, settings: KafkaSettings, bootstrap: str) -> None:
        """Raises BrokerUnreachable, or TopicMissing when the topic is missing and may not be created."""
        ensure_topics(settings, bootstrap)
        self._topic = settings.topic
        self._close_timeout_s = settings.connect_timeout_s
        self._producer = open_producer(settings, bootstrap)
        self._changed = threading.Condition()
        self._under_way = self._acknowledged = self._failed = 0
        self._refused: list[str] = []
        self._first_error = ""

    @property
    def acknowledged(self) -> int:
        """Records that all in-sync replicas have, of those sent so far."""
        with self._changed:
            return self._acknowledged

    def send(self, document: Document) -> None:
        """Queues one version of a document. Raises BrokerError when it can't even be queued."""
        with translated_errors(f"document {document.id!a}"):
            key, value = document.id.encode(), document.to_json()
        self.send_raw(key, value, _OWN_SHAPE)

    def delete(self, id: str, namespace: str = "default", seq: int = 0) -> None:
        """Queues the deletion of a document: a null value under its id; `seq` for a producer that numbers versions."""
        headers = [*_OWN_SHAPE, (NAMESPACE_HEADER, namespace.encode())]
        self.send_raw(id.encode(), None, [*headers, (SEQ_HEADER, str(seq).encode())] if seq else headers)

    def send_raw(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Queues bytes as they are, whether or not they can be read as a document; `timestamp_ms` None means now."""
        name = "a record without a key" if key is None else repr(key[:80].decode(errors="replace"))
        with self._changed:
            self._under_way += 1
        try:
            with translated_errors(f"Kafka topic {self._topic}"):
                future = self._producer.send(
                    self._topic, key=key, value=value, headers=list(headers), timestamp_ms=timestamp_ms
                )
        except BrokerError as error:
            if isinstance(error.__cause__, _NEVER_TAKEN):  # not even the client takes it
                self._note(name, error.__cause__)
                return
            with self._changed:
                self._under_way -= 1
            raise
        future.add_callback(self._count)
        future.add_errback(self._note, name)

    def flush(self, timeout_s: float) -> None:
        """Waits until all queued records are acknowledged.

        Raises RecordsRefused when all were but those that the broker will never take, BrokerError when others were not
        delivered, BrokerUnreachable when `timeout_s` seconds were not enough.
        """
        with self._changed:  # the client's own flush gives up when it has to split a batch
            if not self._changed.wait_for(lambda: not self._under_way, timeout_s):
                raise BrokerUnreachable(
                    f"Kafka topic {self._topic}: no answer from Kafka: {self._under_way} records are not acknowledged "
                    f"after {timeout_s:g} s"
                )
            failed, refused, first_error = self._failed, self._refused, self._first_error
            self._failed, self._refused, self._first_error = 0, [], ""
        if failed:
            raise BrokerError(
                f"Kafka topic {self._topic}: {failed} records were not delivered ({first_error}); "
                f"{self.acknowledged} were, send the others again"
            )
        if refused:
            more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
            raise RecordsRefused(
                f"Kafka topic {self._topic} refused {', '.join(refused[:_NAMED])}{more} ({first_error}): raise its "
                f"max.message.bytes, or leave them out; all others have arrived",
                len(refused),
            )

    def close(self) -> None:
        """Sends what is queued within `connect_timeout_s` seconds and disconnects; repeated calls are fine."""
        with translated_errors(f"Kafka topic {self._topic}"):
            self._producer.close(timeout=self._close_timeout_s)

    def __enter__(self) -> DocumentProducer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, metadata: object) -> None:
        with self._changed:
            self._under_way -= 1
            self._acknowledged += 1
            self._changed.notify_all()

    def _note(self, name: str, error: BaseException) -> None:
        with self._changed:
            self._under_way -= 1
            if isinstance(error, _NEVER_TAKEN):
                self._refused.append(name)
            else:
                self._failed += 1
            self._first_error = self._first_error or " ".join(str(error).split())[:300]
            self._changed.notify_all()
