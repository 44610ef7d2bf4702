"""Carries a bank with its whole history to a Parquet file and back."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from services.bank.schema import SCHEMA_VERSION, BankLayout, schema_version
from services.bank.store import BankStore, WriterLock, bank_errors
from services.errors import BankUnavailable

__all__ = ["export_bank", "import_bank"]

_BATCH_ROWS = 256  # of some 40 kB each


def export_bank(store: BankStore, path: Path) -> int:
    """Writes all rows of the bank's latest version, closed ones and guards included; gives their number.

    Until it is whole the file has another name. Raises BankUnavailable when there is no bank, and OSError when the file can't
    be written.
    """
    table = store.existing()
    rows = 0
    part = path.with_name(f"{path.name}.part")
    try:
        with pq.ParquetWriter(part, table.schema, compression="zstd") as file, bank_errors(store.uri):
            for batch in table.to_lance().to_batches(batch_size=_BATCH_ROWS):
                file.write_batch(batch)
                rows += batch.num_rows
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return rows


def import_bank(store: BankStore, path: Path) -> int:
    """Fills a new or empty bank from a file that `export_bank` wrote; gives the number of rows, all in one commit.

    Raises BankUnavailable when the file is no such export, the bank has rows already, or another writer has it open.
    """
    if not path.is_file():
        raise BankUnavailable(f"{path.absolute()} is no file: name one that `cmt bank export` wrote")
    with bank_errors(store.uri):
        try:
            file = pq.ParquetFile(path)
        except pa.ArrowInvalid:
            raise BankUnavailable(f"{path} is not a Parquet file") from None
    with file:
        layout = BankLayout.from_schema(file.schema_arrow)
        if schema_version(file.schema_arrow) != SCHEMA_VERSION:
            raise BankUnavailable(f"{path} is of an older version: let `cmt ingest` open its bank, and export it again")
        lock = WriterLock(store)
        lock.acquire(0.0)
        try:
            table = store.open_or_create(layout)
            if table.count_rows():
                raise BankUnavailable(f"bank {store.uri} has rows already: import into another bank.uri")
            schema = layout.arrow_schema()
            batches = (batch.select(schema.names) for batch in file.iter_batches(_BATCH_ROWS))
            with bank_errors(store.uri):
                table.add(pa.RecordBatchReader.from_batches(schema, batches))
                return int(table.count_rows())
        finally:
            lock.release()
