"""Numbers the topics that a bank was written from, so that a topic made anew counts as newer, though its offsets do not.

The numbers are kept in a small table beside the memories: they live and move with the bank, on disk and in S3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import lancedb
import pyarrow as pa

from services.bank.store import BankStore, bank_errors

__all__ = ["TopicEpochs"]

_TABLE = "topic_epochs"
_SCHEMA = pa.schema(
    [
        pa.field("topic_id", pa.string(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
    ]
)


class TopicEpochs:
    """The epoch of every topic that the bank at `uri` has seen; belongs to the bank's one writer, like its rows.

    All methods raise BankUnavailable or BankFull when the table can't be read or written.
    """

    def __init__(
        self,
        uri: str,
        storage_options: Mapping[str, str] | None = None,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = BankStore(uri, storage_options)
        self._storage_options = dict(storage_options or {})
        self._clock_ms = clock_ms
        self._known: dict[str, int] | None = None

    def epoch_of(self, topic_id: str) -> int:
        """The milliseconds since 1970 at which the bank first saw the topic: the same for ever, and larger than others.

        A clock that was set back makes it one more than the largest so far.
        """
        with bank_errors(self._store.uri):
            if self._known is None or topic_id not in self._known:
                table = self._table()
                rows = table.search().to_arrow().to_pylist()
                self._known = {row["topic_id"]: row["epoch"] for row in rows}
                if topic_id not in self._known:
                    epoch = max(self._clock_ms(), max(self._known.values(), default=0) + 1)
                    table.add([{"topic_id": topic_id, "epoch": epoch}])
                    self._known[topic_id] = epoch
            return self._known[topic_id]

    def _table(self) -> Any:
        connection = lancedb.connect(self._store.folder or self._store.uri, storage_options=self._storage_options)
        return connection.create_table(_TABLE, schema=_SCHEMA, exist_ok=True)
