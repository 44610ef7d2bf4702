"""Opens and creates the LanceDB table of a bank, and turns what can go wrong there into one-line errors."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb

from services.bank.failures import bank_errors
from services.bank.full_text_index import create_full_text_index
from services.bank.location import local_folder
from services.bank.lock import WriterLock, require_free
from services.bank.migrations import migrate
from services.bank.schema import MOVED_KEY, TABLE_NAME, BankLayout
from services.errors import BankMismatch, BankUnavailable

__all__ = ["BankStore", "WriterLock", "bank_errors"]

_log = logging.getLogger(__name__)


class BankStore:
    """A bank's address; hands out table handles, each pinned to the version that was the latest when it was opened.

    `folder` is the local bank's place, None in an object store. Raises BankUnavailable for an address that can't be one.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.folder = local_folder(uri)
        self.uri = uri if self.folder is None else str(self.folder)  # what errors name
        self._storage_options = dict(storage_options or {})
        self._connection: Any = None

    def open(self, layout: BankLayout | None) -> Any | None:
        """A handle at the latest version, or None when there is no bank yet.

        Raises BankMismatch when the bank was written with another layout, BankUnavailable when it can't be opened.
        """
        with bank_errors(self.uri):
            # connect() would create the folder, which is the writer's business
            if self.folder is not None and not self.folder.exists():
                self._refuse_file_above(self.folder)
                return None
            try:
                table = self._current()
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise
            self._require_layout(self._layout_of(table), layout)
            return table

    def existing(self) -> Any:
        """As `open`, in whatever layout; raises BankUnavailable when there is no bank, too."""
        table = self.open(None)
        if table is None:
            raise BankUnavailable(f"there is no bank at {self.uri}: correct bank.uri (--bank)")
        return table

    def open_or_create(self, layout: BankLayout) -> Any:
        """A handle at the latest version of the bank, which is created when it is missing."""
        table = self.open(layout)
        with bank_errors(self.uri):
            if table is None:
                table = self._connect().create_table(TABLE_NAME, schema=layout.arrow_schema())
                # an empty index already says how the words of rows that it does not cover are read
                create_full_text_index(table)
            for step in migrate(table):
                _log.info("bank %s: version %d: %s", self.uri, step.version, step.title)
        return table

    def create_next(self, layout: BankLayout) -> Any:
        """An empty table of another layout beside the current one, in the place of what an earlier try has left."""
        name = f"{TABLE_NAME}-{layout.model_id}"
        if name == self._current().name:  # encoded once more with the same checkpoint
            name += "-again"
        table = self._connect().create_table(name, schema=layout.arrow_schema(), mode="overwrite")
        create_full_text_index(table)
        return table

    def reopened(self, table: Any) -> Any:
        """A fresh handle of the same table at its latest version."""
        return self._connect().open_table(table.name)

    def switch_to(self, table: Any, old: Any) -> None:
        """Makes `table` the current one by a single commit, and drops the memories of the old one."""
        first = self._connect().open_table(TABLE_NAME)
        first.to_lance().update_schema_metadata({MOVED_KEY.decode(): table.name})
        if old.name != TABLE_NAME:
            self._connect().drop_table(old.name)
            return
        first.checkout_latest()
        first.delete("true")
        first.to_lance().cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)

    def _current(self) -> Any:
        table = self._connect().open_table(TABLE_NAME)
        moved_to = (table.schema.metadata or {}).get(MOVED_KEY)
        return table if moved_to is None else self._connect().open_table(moved_to.decode())

    def require_free(self, min_free_bytes: int) -> None:
        """Raises BankFull when less is free on the disk of a local bank."""
        require_free(self, min_free_bytes)

    def _connect(self) -> Any:
        if self._connection is None:
            # no read_consistency_interval: a handle must not change its version between the two steps of a search
            self._connection = lancedb.connect(self.folder or self.uri, storage_options=self._storage_options or None)
        return self._connection

    def _layout_of(self, table: Any) -> BankLayout:
        try:
            return BankLayout.from_schema(table.schema)
        except BankUnavailable as error:
            raise BankUnavailable(f"bank {self.uri} can't be used: {error}") from None

    def _require_layout(self, found: BankLayout, wanted: BankLayout | None) -> None:
        if wanted is None or found == wanted:
            return
        if found.model_id != wanted.model_id:
            what = f"of checkpoint {found.model_id}, this is {wanted.model_id}"
        else:
            what = (
                f"with keys of {found.d_key} and {found.memory_bytes} bytes, "
                f"this checkpoint writes {wanted.d_key} and {wanted.memory_bytes}"
            )
        raise BankMismatch(
            f"bank {self.uri} holds memories {what}: run `cmt bank reindex`, or use another bank.uri or "
            "the checkpoint that wrote the bank"
        )

    @staticmethod
    def _refuse_file_above(folder: Path) -> None:
        parent = next(path for path in folder.parents if path.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(parent))
