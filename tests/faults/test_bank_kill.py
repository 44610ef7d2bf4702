"""Claims about kill -9 of the bank's writer, at random moments of commits, compactions and index builds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from services.bank.reader import BankReader
from services.bank.records import DocumentWrite
from services.bank.writer import BankWriter
from tests.faults.bank_process import DOCUMENTS, LAYOUT, record

SEEDS = int(os.environ.get("BANK_KILLS", "6"))


def killed_after(uri: str, first: int, seconds: float) -> int:
    """Runs the writing process, kills it that long after it has opened the bank; the last offset that it acknowledged."""
    command = [sys.executable, "-m", "tests.faults.bank_process", uri, str(first)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    time.sleep(seconds)
    process.kill()
    acknowledged = [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    return acknowledged[-1] if acknowledged else first - 1


def live_documents(last: int) -> dict[str, list[str]]:
    """What the records up to an offset leave."""
    state: dict[str, list[str]] = {}
    for one in map(record, range(last + 1)):
        state.pop(one.doc_id, None)
        if isinstance(one, DocumentWrite):
            state[one.doc_id] = [chunk.text for chunk in one.chunks]
    return state


def found_documents(reader: BankReader) -> dict[str, list[str]]:
    hits = reader.search(np.ones((1, LAYOUT.d_key)), 10 * DOCUMENTS, every_chunk=True)[0]
    state: dict[str, list[str]] = {}
    for hit in sorted(hits, key=lambda hit: (hit.doc_id, hit.chunk_no)):
        assert hit.memory.rstrip(b".").decode() == hit.text.split()[0]
        state.setdefault(hit.doc_id, []).append(hit.text)
    return state


def test_killed_writer_leaves_a_bank_with_every_acknowledged_row_once(tmp_path: Path) -> None:
    """The commit under way may have been made or not, as a whole; sent again it changes nothing twice."""
    uri = str(tmp_path / "bank")
    acknowledged = -1
    dice = random.Random(0)
    for _ in range(SEEDS):
        acknowledged = killed_after(uri, acknowledged + 1, dice.uniform(0.02, 0.8))
        reader = BankReader(uri, LAYOUT, read_staleness_s=0)
        found = found_documents(reader)
        assert found in (live_documents(acknowledged), live_documents(acknowledged + 5))
        with BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=0) as writer:  # the lock is free, the tables are whole
            replayed = [record(offset) for offset in range(max(0, acknowledged - 9), acknowledged + 6)]
            writer.commit(replayed)
        acknowledged += 5
        assert found_documents(reader) == live_documents(acknowledged)
    assert acknowledged > 5 * SEEDS  # the processes did get to work before they were killed
