"""Calls to Ray actors as plain functions, whose errors are the actors' own and not Ray's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from services.bank.records import Chunk, CommitReport
from services.errors import RecordError, ServiceError, WorkerLost
from services.ingest.names import actor_or_none
from services.ingest.ports import BankRecord
from services.settings import KafkaSettings
from services.stream.topic_identity import topic_identity

__all__ = ["RemoteCompress", "RemoteEpoch", "RemoteWrite", "result"]

_AVOID_S = 30.0


def result(reference: Any, timeout_s: float | None = None) -> Any:
    """What a remote call gave; raises what it raised, or a ServiceError of one line when Ray itself failed.

    `cmt_core`'s errors, ServiceError and ValueError pass as they are; any other becomes a ServiceError. An actor that
    died or is being started again is WorkerLost, which is worth a retry.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        raise _own(error.cause) from None
    except GetTimeoutError:
        raise ServiceError(f"an ingest actor did not answer within {timeout_s:g} s") from None
    except RayActorError as error:
        raise WorkerLost(f"an ingest actor died: {_first_line(error)}") from None
    except RayError as error:
        raise WorkerLost(f"Ray failed: {_first_line(error)}") from None


@dataclass(slots=True)
class _Worker:
    actor: Any
    calls: int = 0
    lost_s: float = float("-inf")


class RemoteCompress:
    """Compresses on the compressor actor that has the fewest calls of this process under way; thread-safe.

    An actor that died a moment ago comes last, so that a retry goes to another where there is one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}
        self.use(names)

    def use(self, names: Iterable[str]) -> None:
        """The pool from now on, by the actors' names; calls that are under way elsewhere go on."""
        with self._lock:
            known = self._workers
            found = {name: known.get(name) or _Worker(actor_or_none(name)) for name in names}
            self._workers = {name: worker for name, worker in found.items() if worker.actor is not None}

    def __call__(self, documents: Sequence[tuple[str, str]]) -> list[list[Chunk] | RecordError]:
        """The chunks of each (title, text), or why there are none. Raises WorkerLost when the actor dies meanwhile."""
        with self._lock:
            if not self._workers:
                raise WorkerLost("there is no compressor")
            now_s = time.monotonic()
            worker = min(self._workers.values(), key=lambda one: (now_s - one.lost_s < _AVOID_S, one.calls))
            worker.calls += 1
        try:
            chunks: list[list[Chunk] | RecordError] = result(worker.actor.compress.remote(list(documents)))
            return chunks
        except WorkerLost:
            worker.lost_s = time.monotonic()
            raise
        finally:
            with self._lock:
                worker.calls -= 1


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
