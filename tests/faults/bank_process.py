"""A process that writes to a bank, compacts it and builds its indexes without a pause, until it is killed.

    python -m tests.faults.bank_process URI FIRST_OFFSET

Prints the offset of every record whose commit has returned, so that whoever kills it knows what was acknowledged.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np

from services.bank.records import Chunk, DocumentDelete, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter, Record

LAYOUT = BankLayout("checkpoint-a", d_key=8, memory_bytes=64)
DOCUMENTS = 40
_T0 = datetime(2026, 1, 1, tzinfo=UTC)


def record(offset: int) -> Record:
    """The record at an offset: the same in every process; each eleventh is a delete."""
    doc_id, position = f"d{offset * 7 % DOCUMENTS}", Position(0, 0, offset, _T0)
    if offset % 11 == 10:
        return DocumentDelete("default", doc_id, position)
    key = np.random.default_rng(offset).standard_normal(LAYOUT.d_key).astype(np.float32)
    chunks = tuple(
        Chunk(f"{offset} part {number}", key, str(offset).encode().ljust(64, b"."), 3)
        for number in range(1 + offset % 3)
    )
    return DocumentWrite("default", doc_id, None, None, None, None, None, position, chunks)


def main(uri: str, first: int) -> None:
    """Commits five records at a time; every third round compacts, every fourth optimises all."""
    with BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=60, lock_wait_s=10.0) as writer:
        print("open", flush=True)
        for number in range(10_000):
            start = first + 5 * number
            writer.commit([record(offset) for offset in range(start, start + 5)])
            print(start + 4, flush=True)
            if number % 3 == 2:
                writer.maintain()
            if number % 4 == 3:
                writer.optimize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
