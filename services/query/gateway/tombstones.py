"""Deletes documents the way everything else reaches the bank: as records in Kafka."""

from __future__ import annotations

import threading
from contextlib import suppress

from services.settings import KafkaSettings
from services.stream.broker import running_broker
from services.stream.producer import DocumentProducer

__all__ = ["Tombstones"]

_FLUSH_S = 10.0


class Tombstones:
    """Sends tombstones; connects with the first one, so that the service starts without Kafka. Thread-safe."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._producer: DocumentProducer | None = None

    def delete(self, doc_id: str, namespace: str) -> None:
        """Returns when all in-sync replicas have the tombstone. Raises BrokerError; then the next one connects anew."""
        with self._lock:
            if self._producer is None:
                self._producer = DocumentProducer(self._settings, running_broker(self._settings))
            try:
                self._producer.delete(doc_id, namespace)
                self._producer.flush(_FLUSH_S)
            except BaseException:  # its sending thread may have ended, or still hold a tombstone that was refused
                broken, self._producer = self._producer, None
                with suppress(Exception):
                    broken.close()
                raise
