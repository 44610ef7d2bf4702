"""Keeps a bank fast and small: merges fragments in size tiers, and removes old table versions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from services.bank.indexing import update_indexes

__all__ = ["MaintenanceReport", "is_due", "maintain_table", "optimize_table", "tier_targets"]

_FRAGMENT_BYTES = 128 * 2**20
_RUN_BYTES = 3 * _FRAGMENT_BYTES
_SMALLEST_ROWS = 1024
_DUE_FRAGMENTS = 8
_DELETED_SHARE = 0.3
_KEEP_VERSIONS_S = 60.0


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What one maintenance did: fragments merged and made, old versions and their bytes removed, seconds."""

    fragments_removed: int
    fragments_added: int
    versions_removed: int
    bytes_removed: int
    seconds: float


def tier_targets(row_bytes: int) -> list[int]:
    """Rows per fragment of each tier, smallest first; the largest fragment is about 128 MiB.

    Lance's own default of 1,048,576 rows would be 37 GB of wide memory rows in one fragment. A fragment is also what
    a commit may have to wait for, so it is kept at about a second of writing.
    """
    largest = max(_SMALLEST_ROWS, _FRAGMENT_BYTES // max(1, row_bytes))
    return [_SMALLEST_ROWS] if largest < 2 * _SMALLEST_ROWS else [_SMALLEST_ROWS, largest]


def is_due(rows: Sequence[int], target_rows: int) -> bool:
    """Whether fragments of these sizes are worth merging: many small ones, or enough rows for a full one.

    The leftover of an earlier merge alone is not, or every run would write it again.
    """
    many = sum(count < _SMALLEST_ROWS for count in rows) >= _DUE_FRAGMENTS
    return many or (target_rows > _SMALLEST_ROWS and len(rows) > 1 and sum(rows) >= target_rows)


def maintain_table(table: Any, row_bytes: int, frozen: Sequence[int] = ()) -> MaintenanceReport:
    """Compacts the table and drops versions older than a minute; moves the handle to the latest version.

    A row is rewritten about once per tier, and one run reads at most 384 MiB; the rest waits for the next. Readers
    hold a version for a moment only, and questions as of the past use row times, not versions. Fragments in `frozen`
    are left as they are.
    """
    started = time.perf_counter()
    removed = added = 0
    dataset = table.to_lance()
    for target_rows in tier_targets(row_bytes):
        if not is_due(_candidates(dataset, target_rows, frozen), target_rows):
            continue
        metrics = dataset.optimize.compact_files(
            target_rows_per_fragment=target_rows,
            materialize_deletions_threshold=_DELETED_SHARE,
            max_source_bytes=_RUN_BYTES,
            # copied pages keep their size, and a scan of 32-row pages takes five times as long
            compaction_mode="reencode" if target_rows == _SMALLEST_ROWS else "try_binary_copy",
            excluded_fragment_ids=list(frozen),
            batch_size=256,  # rows in memory at once: the default would be 300 MB of memories
        )
        removed += metrics.fragments_removed
        added += metrics.fragments_added
    cleaned = dataset.cleanup_old_versions(
        older_than=timedelta(seconds=_KEEP_VERSIONS_S), error_if_tagged_old_versions=False
    )
    table.checkout_latest()
    return MaintenanceReport(removed, added, cleaned.old_versions, cleaned.bytes_removed, time.perf_counter() - started)


def optimize_table(table: Any, row_bytes: int, ann_rows: int) -> MaintenanceReport:
    """Everything at once, however long it takes: full fragments, no deleted rows, one segment an index, no old versions."""
    started = time.perf_counter()
    removed = added = 0
    update_indexes(table, ann_rows, whole=True)  # fragments are merged within a segment only
    while True:
        metrics = table.to_lance().optimize.compact_files(
            target_rows_per_fragment=tier_targets(row_bytes)[-1],
            materialize_deletions_threshold=0.0,
            max_source_bytes=_RUN_BYTES,
            batch_size=256,
        )
        table.checkout_latest()
        removed, added = removed + metrics.fragments_removed, added + metrics.fragments_added
        if metrics.fragments_removed <= 1:
            break
    update_indexes(table, ann_rows, whole=True)
    cleaned = table.to_lance().cleanup_old_versions(
        older_than=timedelta(seconds=_KEEP_VERSIONS_S), error_if_tagged_old_versions=False
    )
    table.checkout_latest()
    return MaintenanceReport(removed, added, cleaned.old_versions, cleaned.bytes_removed, time.perf_counter() - started)


def _candidates(dataset: Any, target_rows: int, frozen: Sequence[int]) -> list[int]:
    """Live rows of the fragments that Lance would rewrite for this target."""
    fragments = [one.metadata for one in dataset.get_fragments() if one.fragment_id not in frozen]
    return [
        fragment.physical_rows - fragment.num_deletions
        for fragment in fragments
        if fragment.physical_rows < target_rows or fragment.num_deletions > _DELETED_SHARE * fragment.physical_rows
    ]
