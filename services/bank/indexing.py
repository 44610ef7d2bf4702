"""Builds the indexes of a bank beside its commits, in a thread of the writer's process.

An index commit changes no row: the writer knows it by its transaction and goes on. Compaction waits for a running build,
and a build for compaction, since each would invalidate the other's work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lance
from lancedb.index import BTree, IvfSq

from services.bank.full_text_index import create_full_text_index
from services.bank.index_plan import IndexPlan, segments_to_merge
from services.bank.index_state import DOCUMENTS_INDEX, FULL_TEXT_INDEX, VECTOR_INDEX, index_state
from services.bank.store import BankStore, bank_errors
from services.errors import BankError
from services.metrics import Metrics
from services.supervision import ServiceThread

__all__ = [
    "FROZEN_ROWS",
    "IndexBuild",
    "Indexer",
    "frozen_fragments",
    "is_index_commit",
    "rebuild_words",
    "update_indexes",
]

_log = logging.getLogger(__name__)
FROZEN_ROWS = 4096
"""Compaction leaves the fragments of larger index segments alone: it would have to write the segment again."""
_LOOK_EVERY_S = 0.5
_AGAIN_AFTER_S = 20.0
_STOP_WITHIN_S = 10.0
_KEYS_TAIL_SHARE = 0.02  # exact search of the keys' tail costs little until it is this large
_PARTITION_ROWS = 1024


@dataclass(frozen=True, slots=True)
class IndexBuild:
    """What one round of building did: rows that the full-text and the vector index took in, seconds."""

    words_rows: int
    keys_rows: int
    seconds: float


def update_indexes(table: Any, ann_rows: int, *, whole: bool = False) -> IndexBuild:
    """Brings the indexes up to the table's latest version; `whole` merges all their segments into one.

    The vector index is made when the bank has `ann_rows` rows, 0 never. Raises what Lance raises.
    """
    started = time.perf_counter()
    table.checkout_latest()
    state = index_state(table)
    words_rows = keys_rows = 0
    if not state.has_words:
        create_full_text_index(table)
        words_rows = state.full_text_tail_rows
    elif state.full_text_tail_rows or whole:
        words_rows = _take_in(table, FULL_TEXT_INDEX, state.full_text_tail_rows, whole)
    if not state.has_documents:
        table.create_index("doc_id", config=BTree(), name=DOCUMENTS_INDEX)
    elif words_rows or whole:
        _take_in(table, DOCUMENTS_INDEX, words_rows, whole)
    rows = state.keys_rows + state.vector_tail_rows
    if not state.has_keys:
        if ann_rows and rows >= ann_rows:
            table.create_index("key", config=_vector_index(rows), name=VECTOR_INDEX)
            keys_rows = rows
    elif whole or state.vector_tail_rows > _KEYS_TAIL_SHARE * rows:
        keys_rows = _take_in(table, VECTOR_INDEX, state.vector_tail_rows, whole)
    table.checkout_latest()
    return IndexBuild(words_rows, keys_rows, time.perf_counter() - started)


def rebuild_words(table: Any) -> None:
    """Makes the full-text index anew, so that it knows no word of removed rows."""
    create_full_text_index(table)


def frozen_fragments(dataset: Any) -> list[int]:
    """Fragments that only `cmt bank optimize` rewrites: those of large index segments."""
    frozen: set[int] = set()
    for description in dataset.describe_indices():
        for segment in description.segments:
            if _live_rows(dataset, segment) > FROZEN_ROWS:
                frozen |= set(segment.fragment_ids)
    return sorted(frozen)


def is_index_commit(dataset: Any, version: int) -> bool:
    """Whether this version of the table came from building an index; false when it is not known any more."""
    transaction = dataset.read_transaction(version)
    return transaction is not None and isinstance(transaction.operation, lance.LanceOperation.CreateIndex)


def _take_in(table: Any, name: str, tail_rows: int, whole: bool) -> int:
    dataset = table.to_lance()
    segments = _segment_rows(dataset, name)
    merged = len(segments) if whole else segments_to_merge(segments, tail_rows)
    dataset.optimize.optimize_indices(num_indices_to_merge=merged, index_names=[name])
    return tail_rows


def _segment_rows(dataset: Any, name: str) -> list[int]:
    """Rows of the index's segments, oldest first."""
    (description,) = (one for one in dataset.describe_indices() if one.name == name)
    segments = sorted(description.segments, key=lambda one: (one.dataset_version_at_last_update, one.created_at))
    return [_live_rows(dataset, segment) for segment in segments]


def _live_rows(dataset: Any, segment: Any) -> int:
    fragments = {one.fragment_id: one.metadata for one in dataset.get_fragments()}
    return sum(fragments[number].physical_rows for number in segment.fragment_ids if number in fragments)


def _vector_index(rows: int) -> IvfSq:
    return IvfSq(distance_type="cosine", num_partitions=max(16, rows // _PARTITION_ROWS), max_iterations=20)


class Indexer:
    """Looks twice a second whether the indexes are due; `changing` is held while it builds, and by compaction.

    `report` is told of every build, in the indexer's thread.
    """

    def __init__(
        self,
        uri: str,
        storage_options: Mapping[str, str] | None,
        ann_rows: int,
        report: Callable[[IndexBuild], None] = lambda build: None,
        metrics: Metrics | None = None,
    ) -> None:
        self.changing = threading.Lock()
        self._store = BankStore(uri, storage_options)
        self._ann_rows = ann_rows
        self._report = report
        self._plan = IndexPlan()
        self._stopping = threading.Event()
        self._dirty = True
        self._again_s = float("-inf")
        self._thread = ServiceThread("bank-indexer", self._run, metrics or Metrics(), failed=self._not_built).start()

    def committed(self) -> None:
        """Tells of a commit: a build waits for a pause."""
        self._plan.committed(time.monotonic())
        self._dirty = True

    def stop(self) -> None:
        """Ends after the build under way; one that takes longer than that may end later, which harms nobody."""
        self._stopping.set()
        self._thread.join(_STOP_WITHIN_S)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            if not self._dirty or time.monotonic() < self._again_s:
                continue
            try:
                self._look()
            except BankError as error:
                _log.warning("the bank's indexes are not up to date: %s", error)
                self._not_built(error)

    def _not_built(self, error: BaseException) -> None:
        self._again_s, self._dirty = time.monotonic() + _AGAIN_AFTER_S, True

    def _look(self) -> None:
        self._dirty = False
        table = self._store.open(None)
        if table is None:
            return
        with bank_errors(self._store.uri):
            if not self._plan.due(index_state(table).full_text_tail_rows, time.monotonic()):
                self._dirty |= self._plan.due_since_s is not None
                return
            with self.changing:
                started = time.monotonic()
                build = update_indexes(table, self._ann_rows)
                self._plan.built(started, time.monotonic())
        _log.info("indexes of bank %s: %s", self._store.uri, build)
        self._report(build)
