"""Writes documents and deletions to the topic, every record acknowledged by all in-sync replicas."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from kafka import KafkaProducer

from services.errors import BrokerError
from services.settings import KafkaSettings
from services.stream.connection import connect, translated_errors
from services.stream.record import CONTENT_TYPE, CONTENT_TYPE_HEADER, NAMESPACE_HEADER, SEQ_HEADER, Document
from services.stream.topics import ensure_topics

__all__ = ["DocumentProducer", "open_producer"]

# What a broker accepts is the broker's setting, so the client's own limit only has to be out of its way.
_MAX_REQUEST_BYTES = 64 * 2**20
_OWN_SHAPE = [(CONTENT_TYPE_HEADER, CONTENT_TYPE)]


def open_producer(settings: KafkaSettings, bootstrap: str, *, idempotent: bool = True) -> Any:
    """A kafka-python producer: acknowledged by all replicas, no automatic topics; when idempotent, in order and once.

    A record that is not delivered within three times `connect_timeout_s` fails. After a record that the broker refuses (too
    large) an idempotent one refuses everything.
    """
    timeout_ms = int(settings.connect_timeout_s * 1000)
    return connect(
        KafkaProducer,
        settings,
        bootstrap,
        acks="all",
        enable_idempotence=idempotent,
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

    Sending only queues. `flush` waits, and is where a failed delivery is told; `acknowledged` counts what has arrived.
    """

    def __init__(self, settings: KafkaSettings, bootstrap: str) -> None:
        """Raises BrokerUnreachable, or TopicMissing when the topic is missing and may not be created."""
        ensure_topics(settings, bootstrap)
        self._topic = settings.topic
        self._close_timeout_s = settings.connect_timeout_s
        self._producer = open_producer(settings, bootstrap)
        self._lock = threading.Lock()
        self._acknowledged = self._failed = 0
        self._first_error = ""

    @property
    def acknowledged(self) -> int:
        """Records that all in-sync replicas have, of those sent so far."""
        with self._lock:
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
        with translated_errors(f"Kafka topic {self._topic}"):
            future = self._producer.send(
                self._topic, key=key, value=value, headers=list(headers), timestamp_ms=timestamp_ms
            )
        future.add_callback(self._count)
        future.add_errback(self._note)

    def flush(self, timeout_s: float) -> None:
        """Waits until all queued records are acknowledged.

        Raises BrokerError when some were not delivered, BrokerUnreachable when `timeout_s` seconds were not enough.
        """
        with translated_errors(f"Kafka topic {self._topic}"):
            self._producer.flush(timeout=timeout_s)
        with self._lock:
            failed, first_error = self._failed, self._first_error
            self._failed, self._first_error = 0, ""
        if failed:
            raise BrokerError(
                f"Kafka topic {self._topic}: {failed} records were not delivered ({first_error}); "
                f"{self.acknowledged} were, send the others again"
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
        with self._lock:
            self._acknowledged += 1

    def _note(self, error: BaseException) -> None:
        with self._lock:
            self._failed += 1
            self._first_error = self._first_error or " ".join(str(error).split())[:300]
