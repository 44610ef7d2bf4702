"""Decides when the indexes of a bank are brought up to date, and how many of their segments are merged; pure, no table needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["IndexPlan", "segments_to_merge"]

_WORDS_DUE_ROWS = 128
_QUIET_S = 1.0
_LONGEST_WAIT_S = 30.0
_BUILDING_SHARE = 0.2


@dataclass(slots=True)
class IndexPlan:
    """When to build: in a pause of the commits, or after half a minute without one; a fifth of the time at most.

    Stemming a text costs more CPU than the rest of its ingest, so that a full-speed ingest goes first. Times are seconds
    of a monotonic clock.
    """

    last_commit_s: float = float("-inf")
    due_since_s: float | None = None
    free_from_s: float = float("-inf")

    def committed(self, now_s: float) -> None:
        """A commit has just been made."""
        self.last_commit_s = now_s

    def built(self, started_s: float, now_s: float) -> None:
        """A build has ended: the next one waits four times as long as it took."""
        self.due_since_s = None
        self.free_from_s = now_s + (now_s - started_s) * (1 / _BUILDING_SHARE - 1)

    def due(self, tail_rows: int, now_s: float) -> bool:
        """Whether `tail_rows` unindexed rows are to be indexed now."""
        if tail_rows < _WORDS_DUE_ROWS:
            self.due_since_s = None
            return False
        if self.due_since_s is None:
            self.due_since_s = now_s
        if now_s < self.free_from_s:
            return False
        return now_s - self.last_commit_s >= _QUIET_S or now_s - self.due_since_s >= _LONGEST_WAIT_S


def segments_to_merge(segment_rows: Sequence[int], tail_rows: int) -> int:
    """How many of the newest segments (rows of each, oldest first) a new one of `tail_rows` takes in.

    Those not larger than twice what is merged so far, so that a row is written about once per doubling and the
    segments stay few.
    """
    merged_rows, count = tail_rows, 0
    for rows in reversed(segment_rows):
        if rows > 2 * merged_rows:
            break
        merged_rows, count = merged_rows + rows, count + 1
    return count
