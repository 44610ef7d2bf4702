"""One consumer with a real Kafka on one side and a list as its bank on the other, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from services.bank.records import CommitReport, DocumentDelete
from services.ingest.compressor import CompressorWorker
from services.ingest.consumer import Consumer
from services.ingest.ports import BankRecord
from services.metrics import Metrics
from services.settings import KafkaSettings, load_settings
from services.stream.dead_letters import DeadLetters
from services.stream.progress import partition_progress
from services.stream.source import AssignedSource
from services.testing.lexical import load_lexical
from tests.waiting import until

__all__ = ["Ingest"]


class Ingest:
    """Reads all partitions of a topic while the block runs; `records` is what reached the bank, in its order."""

    def __init__(self, settings: KafkaSettings, bootstrap: str) -> None:
        self.settings, self.bootstrap = settings, bootstrap
        self.records: list[BankRecord] = []
        metrics = Metrics()
        whole = load_settings(ingest__batch_wait_s=0.02).model_copy(update={"kafka": settings})
        self.consumer = Consumer(
            whole,
            lambda on_revoked: AssignedSource(settings, bootstrap),
            lambda: DeadLetters(settings, bootstrap),
            CompressorWorker(whole, load_lexical, metrics).compress,
            self._write,
            lambda: 1,
            metrics,
        )

    def __enter__(self) -> Ingest:
        self.consumer.assign(range(self.settings.partitions))
        self.consumer.start()
        self.consumer.wait_until_connected(60.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.consumer.stop(20.0)

    def live(self) -> set[str]:
        """Ids of the documents that the records leave."""
        found: set[str] = set()
        for one in list(self.records):
            (found.discard if isinstance(one, DocumentDelete) else found.add)(one.doc_id)
        return found

    def until(self, claim: Callable[[], Any], within_s: float = 60.0) -> None:
        """Waits for the claim."""
        until(claim, within_s, seen=self.consumer.status)

    def until_caught_up(self, within_s: float = 60.0) -> None:
        """Waits until Kafka itself says that nothing is left to read."""
        self.until(lambda: not sum(one.lag for one in partition_progress(self.settings, self.bootstrap)), within_s)

    def _write(self, records: Sequence[BankRecord]) -> CommitReport:
        self.records += records
        return CommitReport(len(self.records), len(records), 0, 0, 0.0)
