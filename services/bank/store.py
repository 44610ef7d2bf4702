"""Opens and creates the LanceDB table of a bank, and turns what can go wrong there into one-line errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import lancedb

from services.bank.indexed_words import create_words_index
from services.bank.location import local_folder
from services.bank.migrations import migrate
from services.bank.schema import MOVED_KEY, TABLE_NAME, BankLayout
from services.errors import BankError, BankFull, BankMismatch, BankUnavailable, is_panic

__all__ = ["BankStore", "WriterLock", "bank_errors"]

_log = logging.getLogger(__name__)
_NO_SPACE = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")
_LOCK_FILE = ".writer.lock"


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
            self._require_layout(BankLayout.from_schema(table.schema), layout)
            return table

    def open_or_create(self, layout: BankLayout) -> Any:
        """A handle at the latest version of the bank, which is created when it is missing."""
        table = self.open(layout)
        with bank_errors(self.uri):
            if table is None:
                table = self._connect().create_table(TABLE_NAME, schema=layout.arrow_schema())
                # an empty index already says how the words of rows that it does not cover are read
                create_words_index(table)
            for step in migrate(table):
                _log.info("bank %s: version %d: %s", self.uri, step.version, step.title)
        return table

    def create_next(self, layout: BankLayout) -> Any:
        """An empty table of another layout beside the current one, in the place of what an earlier try has left."""
        name = f"{TABLE_NAME}-{layout.model_id}"
        table = self._connect().create_table(name, schema=layout.arrow_schema(), mode="overwrite")
        create_words_index(table)
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
        if self.folder is None or min_free_bytes <= 0:
            return
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free_bytes = shutil.disk_usage(existing).free
        if free_bytes < min_free_bytes:
            raise BankFull(
                f"bank {self.uri}: {free_bytes / 2**20:.0f} MiB are free on its disk, "
                f"bank.min_free_bytes asks for {min_free_bytes / 2**20:.0f} MiB"
            )

    def _connect(self) -> Any:
        if self._connection is None:
            # no read_consistency_interval: a handle must not change its version between the two steps of a search
            self._connection = lancedb.connect(self.folder or self.uri, storage_options=self._storage_options or None)
        return self._connection

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


class WriterLock:
    """Keeps a second writer away from a local bank, because concurrent upserts duplicate rows.

    The kernel frees the lock when the process dies. Object stores have no such lock: there the writer notices after
    a commit that versions were skipped.
    """

    def __init__(self, store: BankStore) -> None:
        self._store = store
        self._file: IO[bytes] | None = None

    def acquire(self, wait_s: float) -> None:
        """Takes the lock; BankUnavailable when another writer still holds it after `wait_s` seconds."""
        if self._store.folder is None:
            return
        deadline = time.monotonic() + wait_s
        with bank_errors(self._store.uri):
            self._store.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._store.folder / _LOCK_FILE).open("a+b")
            while not self._try():
                if time.monotonic() >= deadline:
                    holder = self._holder()
                    self.release()
                    raise BankUnavailable(
                        f"bank {self._store.uri}: another writer has it open{holder}, and a bank has only one"
                    )
                time.sleep(0.05)
            self._file.truncate(0)
            self._file.write(str(os.getpid()).encode())
            self._file.flush()

    def release(self) -> None:
        """Gives the lock back; may be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _holder(self) -> str:
        assert self._file is not None
        self._file.seek(0)
        pid = self._file.read(20)
        return f" (process {pid.decode()})" if pid.isdigit() else ""

    def _try(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                return True  # some network file systems know no locks
            raise
        return True


@contextlib.contextmanager
def bank_errors(uri: str) -> Iterator[None]:
    """Turns errors of the disk, the object store and Lance into BankFull or BankUnavailable."""
    try:
        yield
    except BankError:
        raise
    except BaseException as error:
        if not isinstance(error, OSError | RuntimeError | ValueError) and not is_panic(error):
            raise
        reason = _reason(error)
        if any(sign in str(error).lower() for sign in _NO_SPACE) or getattr(error, "errno", None) == errno.ENOSPC:
            raise BankFull(f"bank {uri}: no space is left on its disk") from error
        raise BankUnavailable(f"bank {uri} can't be used: {reason}") from error


def _reason(error: BaseException) -> str:
    """The first line of an error, without Lance's wrapping and the source location at its end."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({error.filename})" if error.filename else "")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    first = re.sub(r"^(lance error: )?(LanceError\(\w+\): )?", "", first)
    return re.sub(r",? \S+\.rs:\d+(:\d+)?$", "", first)[:300]
