"""The only committer of a bank: replaces and deletes whole documents, each batch in one atomic Lance commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType

import pyarrow as pa

from services.bank.current_versions import CurrentVersion, CurrentVersions, Document, find_current_versions
from services.bank.erasure import erase_documents, remove_history
from services.bank.fence import WriterFence
from services.bank.filters import CURRENT, of_documents
from services.bank.indexing import IndexBuild, Indexer, frozen_fragments, is_index_commit
from services.bank.maintenance import MaintenanceReport, maintain_table, optimize_table
from services.bank.object_store import require_conditional_put
from services.bank.records import CommitReport, DocumentDelete, DocumentWrite
from services.bank.replacement import closed_rows, commit_replacement, staged_replacement
from services.bank.rows import record_rows
from services.bank.schema import GUARD_CHUNK, BankLayout
from services.bank.store import BankStore, WriterLock, bank_errors
from services.errors import BankUnavailable
from services.metrics import Metrics

__all__ = ["BankWriter"]

_log = logging.getLogger(__name__)

_FORGET_EVERY_S = 3600.0
_MICROSECOND = timedelta(microseconds=1)

Record = DocumentWrite | DocumentDelete


class BankWriter:
    """Writes documents to the bank at `uri`, which is created when it is missing; one writer per bank.

    Not thread-safe: it belongs to one actor. `min_free_bytes` of disk must stay free; every `maintain_every`-th
    commit also compacts. Indexes are built in a thread of their own, that of the keys from `ann_rows` rows on (0: never).
    `indexed` is told of every build, `maintained` of every compaction. Rows that were superseded, deleted or expired
    more than `history_s` ago are removed for good, None keeps them. `clock` gives the time (aware) that rows carry as
    `ingested_at`.
    Raises BankUnavailable (also when another writer has the bank), BankFull or BankMismatch. Its methods raise
    BankFenced when a newer writer has taken the bank over, which can only happen where there is no lock.
    """

    def __init__(
        self,
        uri: str,
        layout: BankLayout,
        min_free_bytes: int = 0,
        storage_options: Mapping[str, str] | None = None,
        *,
        maintain_every: int = 32,
        ann_rows: int = 50_000,
        history_s: float | None = None,
        lock_wait_s: float = 5.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        indexed: Callable[[IndexBuild], None] = lambda build: None,
        maintained: Callable[[MaintenanceReport], None] = lambda report: None,
        metrics: Metrics | None = None,
    ) -> None:
        self._layout = layout
        self._store = BankStore(uri, storage_options)
        self._min_free_bytes = min_free_bytes
        self._maintain_every = maintain_every
        self._ann_rows = ann_rows
        self._clock = clock
        self._maintained = maintained
        self._history_s = history_s
        self._forgotten_s = float("-inf")
        self._commits = 0
        self._maintenance_due = False
        self._last_ingested_at = datetime.min.replace(tzinfo=UTC)
        self._store.require_free(min_free_bytes)
        require_conditional_put(uri, storage_options or {})
        self._lock = WriterLock(self._store)
        self._lock.acquire(lock_wait_s)
        try:
            self._table = self._store.open_or_create(layout)
            self._fence = WriterFence(uri, storage_options)
            self._fence.take()
            self._indexer = Indexer(uri, storage_options, ann_rows, indexed, metrics)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> BankWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def epoch(self) -> int:
        """This writer's number among all that the bank has had."""
        return self._fence.epoch

    def close(self) -> None:
        """Lets another writer open the bank; everything committed is already on disk."""
        self._indexer.stop()
        self._lock.release()

    def commit(self, records: Sequence[Record]) -> CommitReport:
        """Makes a batch of records visible to readers, all at once or not at all.

        1. look up the newest version that the bank has of each document
        2. drop stale records: not newer than the bank's version, or than an earlier record of this batch
        3. check that no newer writer has taken the bank over
        4. one commit by row id: close the rows of the old versions and add the rows of the new ones
        A replaced document is never seen half: old and new rows change in the same table version. A batch may hold
        many versions of a document; only the newest becomes a row. Its memory need is that of the batch twice.

        Raises BankFull or BankUnavailable with nothing visible, and ValueError for a record that does not fit the
        bank's layout.
        """
        started = time.perf_counter()
        versions = self._current_versions({(record.namespace, record.doc_id) for record in records})
        newest, stale = _newest(records, versions.of)
        inserted_rows = ended_rows = 0
        if newest:
            now = self._next_time(versions.of.values())
            added = record_rows(newest, self._layout, now)
            self._store.require_free(self._min_free_bytes + added.nbytes if self._min_free_bytes else 0)
            with bank_errors(self._store.uri):
                ending = _ending(newest, versions.of)
                closed = closed_rows(self._table, versions, ending, self._layout, now)
                self._fence.check()
                self._change(ending, pa.concat_tables([closed, added]))
            inserted_rows, ended_rows = added.num_rows, closed.num_rows
            self._after_commit()
        return CommitReport(self._table.version, inserted_rows, ended_rows, stale, time.perf_counter() - started)

    def maintain(self) -> MaintenanceReport:
        """Compacts the table and removes old versions; BankFull or BankUnavailable when that fails, data stay whole."""
        with bank_errors(self._store.uri), self._indexer.changing:
            self._table.checkout_latest()
            self._forget()
            report = maintain_table(self._table, self._row_bytes(), frozen_fragments(self._table.to_lance()))
        self._maintained(report)
        return report

    def _forget(self) -> None:
        """Removes history that is older than what is kept; looks once an hour."""
        now_s = time.monotonic()
        if self._history_s is not None and now_s - self._forgotten_s >= _FORGET_EVERY_S:
            self._forgotten_s = now_s
            removed = remove_history(self._table, self._clock() - timedelta(seconds=self._history_s))
            if removed:
                _log.info("bank %s: %d rows of old history removed", self._store.uri, removed)
            self._table.checkout_latest()

    def optimize(self) -> MaintenanceReport:
        """Compacts everything and merges the indexes; takes as long as it takes. Raises BankFull or BankUnavailable."""
        with bank_errors(self._store.uri), self._indexer.changing:
            self._fence.check()
            self._table.checkout_latest()
            return optimize_table(self._table, self._row_bytes(), self._ann_rows)

    def purge(self, doc_id: str, namespace: str = "default") -> int:
        """Erases all versions of a document, in older table versions too, and gives the rows removed.

        Only a guard stays, with the id and the place in Kafka, against replays. Raises BankFull or BankUnavailable.
        """
        document = (namespace, doc_id)
        with bank_errors(self._store.uri), self._indexer.changing:
            self._fence.check()
            self._table.checkout_latest()
            if current := self._current_versions([document]).of.get(document):
                now = self._next_time([current])
                guard = record_rows([DocumentDelete(namespace, doc_id, current.position)], self._layout, now)
                if not self._table.count_rows(f"{of_documents([document])} AND {CURRENT} AND chunk_no = {GUARD_CHUNK}"):
                    self._table.add(guard)  # first, so that a crash in between leaves no document without a guard
            return erase_documents(self._table, [document])

    def remove_history(self, before: datetime) -> int:
        """Removes rows that stopped counting before a moment (aware). Raises BankFull or BankUnavailable."""
        with bank_errors(self._store.uri), self._indexer.changing:
            self._fence.check()
            self._table.checkout_latest()
            removed = remove_history(self._table, before)
            self._table.checkout_latest()
            return removed

    def _current_versions(self, documents: Iterable[Document]) -> CurrentVersions:
        return find_current_versions(self._table, documents, self._store.uri)

    def _next_time(self, versions: Iterable[CurrentVersion]) -> datetime:
        """The commit's time: never at or before an earlier one, also when the clock is set back."""
        floor = max((current.ingested_at for current in versions), default=self._last_ingested_at)
        self._last_ingested_at = max(self._clock(), floor + _MICROSECOND, self._last_ingested_at + _MICROSECOND)
        return self._last_ingested_at

    def _change(self, ending: Mapping[int, bool], rows: pa.Table) -> None:
        """One commit, that puts `rows` in the place of those that end; new documents alone are appended."""
        expected_version = self._table.version + 1
        try:
            if ending:
                dataset = self._table.to_lance()
                version = commit_replacement(dataset, staged_replacement(dataset, ending, rows))
            else:
                version = self._table.add(rows).version
        finally:
            # also after an error: an object store may have taken the commit and lost the answer
            self._table.checkout_latest()
        if not self._only_indexes_between(expected_version, version):
            raise BankUnavailable(f"bank {self._store.uri}: another writer commits to it, and a bank has only one")

    def _only_indexes_between(self, expected_version: int, version: int) -> bool:
        """Whether all versions that a commit skipped are of our own indexer, which changes no rows."""
        dataset = self._table.to_lance() if version != expected_version else None
        return dataset is None or all(is_index_commit(dataset, skipped) for skipped in range(expected_version, version))

    def _after_commit(self) -> None:
        self._commits += 1
        self._indexer.committed()
        self._maintenance_due |= self._maintain_every > 0 and self._commits % self._maintain_every == 0
        # while an index is being built compaction can wait, the commits can't
        if self._maintenance_due and not self._indexer.changing.locked():
            self._maintenance_due = False
            try:
                report = self.maintain()
            except Exception as error:  # noqa: BLE001 - the batch is safe and visible: the caller must not take it for lost
                _log.warning("maintenance was skipped: %s: %s", type(error).__name__, error)
                self._table.checkout_latest()
            else:
                _log.info("maintenance of bank %s: %s", self._store.uri, report)

    def _row_bytes(self) -> int:
        return self._layout.memory_bytes + 2 * self._layout.d_key


def _newest(records: Iterable[Record], versions: Mapping[Document, CurrentVersion]) -> tuple[list[Record], int]:
    """The newest record of each document that is newer than the bank's, and how many records were stale."""
    newest: dict[Document, Record] = {}
    stale = 0
    for record in records:
        document = (record.namespace, record.doc_id)
        current = newest[document].position if document in newest else None
        if current is None and document in versions:
            current = versions[document].position
        if current is not None and not record.position.newer_than(current):
            stale += 1
        else:
            newest[document] = record
    return list(newest.values()), stale


def _ending(newest: Iterable[Record], versions: Mapping[Document, CurrentVersion]) -> dict[int, bool]:
    """Row ids of the current rows of the batch's documents, and whether a delete ends them."""
    deleted: dict[int, bool] = {}
    for record in newest:
        if current := versions.get((record.namespace, record.doc_id)):
            deleted |= dict.fromkeys(current.row_ids, isinstance(record, DocumentDelete))
    return deleted
