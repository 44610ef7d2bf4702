"""Numbers the writers of a bank, so that one that was taken for dead and wakes up again can't commit any more.

A local bank is also locked by the kernel; on an object store this fence is what keeps two writers apart.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import lancedb
import pyarrow as pa

from services.bank.store import BankStore, bank_errors
from services.errors import BankFenced

__all__ = ["WriterFence"]

_TABLE = "writer_epochs"
_SCHEMA = pa.schema(
    [
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("taken_at_s", pa.int64(), nullable=False),
    ]
)
_KEPT_ROWS = 64


class WriterFence:
    """The writers' epochs of the bank at `uri`. All methods raise BankUnavailable when they can't be read or written."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self._store = BankStore(uri, storage_options)
        self._options = dict(storage_options or {})
        self._table: Any = None
        self._seen_version = -1
        self._mine: tuple[int, str] = (0, "")

    @property
    def epoch(self) -> int:
        """This writer's number, 0 before `take`."""
        return self._mine[0]

    def take(self) -> None:
        """Makes this the newest writer; every earlier one is fenced off from now on."""
        with bank_errors(self._store.uri):
            connection = lancedb.connect(self._store.folder or self._store.uri, storage_options=self._options)
            self._table = connection.create_table(_TABLE, schema=_SCHEMA, exist_ok=True)
            self._mine = (self._newest()[0] + 1, uuid.uuid4().hex)
            epoch, token = self._mine
            self._table.add([{"epoch": epoch, "token": token, "taken_at_s": int(time.time())}])
            if self._table.count_rows() > _KEPT_ROWS:
                self._table.delete(f"epoch <= {epoch - _KEPT_ROWS // 2}")
                self._table.optimize()
        self.check()

    def check(self) -> None:
        """Raises BankFenced when a newer writer has come. Two that came at once are told apart by their tokens."""
        with bank_errors(self._store.uri):
            self._table.checkout_latest()
            if self._table.version == self._seen_version:
                return
            newest = self._newest()
            if newest == self._mine:
                self._seen_version = self._table.version
                return
        raise BankFenced(
            f"bank {self._store.uri}: writer {newest[0]} has taken over from writer {self.epoch}, a bank has only one"
        )

    def _newest(self) -> tuple[int, str]:
        rows = self._table.search().select(["epoch", "token"]).to_arrow().to_pylist()
        return max(((row["epoch"], row["token"]) for row in rows), default=(0, ""))
