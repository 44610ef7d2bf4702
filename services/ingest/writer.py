"""The one committer of a bank: a plain class around BankWriter, and as the last line a Ray actor."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from services.bank.records import CommitReport
from services.bank.schema import BankLayout
from services.errors import BankError, BankUnavailable
from services.ingest.group_commit import GroupCommit
from services.ingest.names import writer_name
from services.ingest.ports import BankRecord
from services.metrics import Metrics
from services.metrics_hub import HUB_NAMESPACE, MetricsPusher
from services.settings import Settings
from services.supervision import ServiceThread
from services.threads import available_cores

if TYPE_CHECKING:
    from services.bank.epochs import TopicEpochs
    from services.bank.maintenance import MaintenanceReport
    from services.bank.reader import BankReader
    from services.bank.writer import BankWriter

__all__ = ["WriterWorker", "writer_actor"]

_log = logging.getLogger(__name__)
_CALLS = 64
_MEASURE_SHARE = 30
_UPKEEP_COUNTERS = (
    "cmt_bank_compacted_fragments_total",
    "cmt_bank_removed_versions_total",
    "cmt_bank_removed_bytes_total",
)
_NAME_WAIT_S = 5.0  # Ray frees the name of an actor that was stopped a moment after


class WriterWorker:
    """Commits to the bank, which is opened when it is first needed, so that its error reaches the caller as itself.

    Writes of several threads share commits.
    """

    def __init__(self, settings: Settings, layout: BankLayout, metrics: Metrics) -> None:
        self._settings = settings.bank
        self._ingest = settings.ingest
        self._layout = layout
        self._metrics = metrics
        self._options = {name: secret.get_secret_value() for name, secret in settings.bank.storage_options.items()}
        self._lock = threading.Lock()
        self._writer: BankWriter | None = None
        self._group: GroupCommit | None = None
        self._epochs: TopicEpochs | None = None
        self._reader: BankReader | None = None
        self._measured_version = -1

    def open(self) -> None:
        """Opens or creates the bank. Raises BankUnavailable, BankFull or BankMismatch."""
        self._opened()
        self.measure()

    def write(self, records: Sequence[BankRecord]) -> CommitReport:
        """One atomic commit, shared with the writes of other callers at the same time.

        Raises BankError with nothing visible, ValueError for a record that does not fit.
        """
        self._opened()
        assert self._group is not None
        return self._group.submit(records)

    def _commit(self, records: Sequence[BankRecord]) -> CommitReport:
        assert self._writer is not None
        report = self._writer.commit(records)
        self._metrics.observe("cmt_bank_commit_seconds", report.seconds)
        return report

    def epoch_of(self, topic_id: str) -> int:
        """The epoch of a topic: larger for every topic that the bank sees later. Raises BankError."""
        self._opened()  # the bank's lock makes this process the only one that numbers topics
        with self._lock:
            assert self._epochs is not None
            return self._epochs.epoch_of(topic_id)

    def measure(self) -> None:
        """Sets the gauges of the bank's size; may be called from another thread than the rest."""
        if self._reader is None:
            return
        stats = self._reader.stats()
        if stats.version != self._measured_version:
            self._metrics.gauge("cmt_bank_rows", stats.rows)
            self._metrics.gauge("cmt_bank_documents", stats.documents)
            self._metrics.gauge("cmt_bank_fragments", stats.fragments)
            self._metrics.gauge("cmt_bank_version", stats.version)
            self._metrics.gauge("cmt_bank_bytes", stats.bytes)
            self._metrics.gauge("cmt_bank_unindexed_rows", stats.unindexed_words_rows, index="words")
            self._metrics.gauge("cmt_bank_unindexed_rows", stats.unindexed_keys_rows, index="keys")
            self._measured_version = stats.version

    def _maintained(self, report: MaintenanceReport) -> None:
        self._metrics.observe("cmt_bank_maintenance_seconds", report.seconds)
        self._metrics.count("cmt_bank_compacted_fragments_total", max(0, report.fragments_removed))
        self._metrics.count("cmt_bank_removed_versions_total", report.versions_removed)
        self._metrics.count("cmt_bank_removed_bytes_total", report.bytes_removed)

    def close(self) -> None:
        """Commits what waits, and lets another writer open the bank."""
        if self._group is not None:
            self._group.close()
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = self._group = None

    def _opened(self) -> None:
        with self._lock:
            if self._writer is not None:
                return
            from services.bank.epochs import TopicEpochs  # LanceDB is loaded in the writer's process only
            from services.bank.reader import BankReader
            from services.bank.writer import BankWriter

            settings = self._settings
            writer = BankWriter(
                settings.uri,
                self._layout,
                settings.min_free_bytes,
                self._options,
                ann_rows=settings.ann_rows,
                history_s=settings.history_s,
                indexed=lambda build: self._metrics.observe("cmt_bank_index_seconds", build.seconds),
                maintained=self._maintained,
                metrics=self._metrics,
            )
            for name in _UPKEEP_COUNTERS:
                self._metrics.count(name, 0)  # seen before the first upkeep, too
            self._epochs = TopicEpochs(settings.uri, self._options)
            self._reader = BankReader(settings.uri, self._layout, 0.0, self._options)
            limits = self._ingest
            self._group = GroupCommit(
                self._commit,
                limits.commit_rows,
                limits.commit_bytes,
                limits.commit_wait_s,
                self._layout.memory_bytes,
                self._metrics,
            )
            self._writer = writer


class _WriterActor(WriterWorker):
    """The worker in a Ray actor: its gauges follow the bank every second, and its metrics reach the hub."""

    def __init__(self, settings: Settings, layout: BankLayout) -> None:
        # Ray gives the process one thread; Lance needs two at least, and reads this when it is loaded
        os.environ["LANCE_CPU_THREADS"] = str(max(2, available_cores()))
        metrics = Metrics()
        super().__init__(settings, layout, metrics)
        self._pusher = MetricsPusher(f"writer-{uuid.uuid4().hex[:12]}", metrics)
        self._closing = threading.Event()
        self._follower = ServiceThread("bank-gauges", self._follow, metrics).start()

    def close(self) -> None:
        """Gives the bank back and sends the last metrics."""
        self._closing.set()
        self._follower.join(5.0)
        super().close()
        self._pusher.stop()

    def _follow(self) -> None:
        pause_s = 1.0
        while True:
            closing = self._closing.wait(pause_s)
            started = time.monotonic()
            try:
                self.measure()
            except BankError as error:  # the commits will say so, too
                _log.debug("the bank's size can't be read: %s", error)
            # a large bank takes longer to measure, and the commits share its cores
            pause_s = max(1.0, _MEASURE_SHARE * (time.monotonic() - started))
            if closing:
                return


def writer_actor(settings: Settings, layout: BankLayout) -> Any:
    """The handle of a new writer actor, which Ray starts again when it dies; its callers decide on repeats.

    Its name keeps a second one for the same address away from the Ray cluster: BankUnavailable.
    """
    options: dict[str, Any] = {
        "name": writer_name(settings),
        "namespace": HUB_NAMESPACE,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": _CALLS,
    }
    actor = ray.remote(_WriterActor).options(**options)
    deadline = time.monotonic() + _NAME_WAIT_S
    while True:
        try:
            return actor.remote(settings, layout)
        except ValueError:
            if time.monotonic() > deadline:
                raise BankUnavailable(
                    f"bank {settings.bank.uri}: another ingest of this Ray cluster writes to it, and a bank has only one"
                ) from None
            time.sleep(0.1)
