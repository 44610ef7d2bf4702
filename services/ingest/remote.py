"""Calls to Ray actors as plain functions, whose errors are the actors' own and not Ray's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from services.bank.schema import Chunk, CommitReport
from services.errors import ServiceError
from services.ingest.ports import BankRecord
from services.settings import KafkaSettings
from services.stream.topic_identity import topic_identity

__all__ = ["RemoteCompress", "RemoteEpoch", "RemoteWrite", "result"]


def result(reference: Any, timeout_s: float | None = None) -> Any:
    """What a remote call gave; raises what it raised, or a ServiceError of one line when Ray itself failed.

    `cmt_core`'s errors, ServiceError and ValueError pass as they are; any other becomes a ServiceError.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        raise _own(error.cause) from None
    except GetTimeoutError:
        raise ServiceError(f"an ingest actor did not answer within {timeout_s:g} s") from None
    except RayActorError as error:
        raise ServiceError(f"an ingest actor died: {_first_line(error)}") from None
    except RayError as error:
        raise ServiceError(f"Ray failed: {_first_line(error)}") from None


class RemoteCompress:
    """Compresses on the compressor actor that has the fewest calls of this process under way; thread-safe."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors
        self._lock = threading.Lock()
        self._calls = [0] * len(actors)

    def __call__(self, documents: Sequence[tuple[str, str]]) -> list[list[Chunk]]:
        """The chunks of each (title, text)."""
        with self._lock:
            chosen = self._calls.index(min(self._calls))
            self._calls[chosen] += 1
        try:
            chunks: list[list[Chunk]] = result(self._actors[chosen].compress.remote(list(documents)))
            return chunks
        finally:
            with self._lock:
                self._calls[chosen] -= 1


class RemoteWrite:
    """Commits on the writer actor."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, records: Sequence[BankRecord]) -> CommitReport:
        """One bank commit."""
        report: CommitReport = result(self._writer.write.remote(list(records)))
        return report


class RemoteEpoch:
    """Asks Kafka for the topic as it is now, and the writer actor for its epoch."""

    def __init__(self, kafka: KafkaSettings, bootstrap: str, writer: Any) -> None:
        self._kafka = kafka
        self._bootstrap = bootstrap
        self._writer = writer

    def __call__(self) -> int:
        """The topic's epoch. Raises BrokerError or BankError."""
        return int(result(self._writer.epoch_of.remote(topic_identity(self._kafka, self._bootstrap))))


def _own(cause: Any) -> BaseException:
    from cmt_core.errors import CoreError

    if isinstance(cause, ServiceError | ValueError | CoreError):
        return cause
    return ServiceError(f"an ingest actor failed: {type(cause).__name__}: {_first_line(cause)}")


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason was given"
