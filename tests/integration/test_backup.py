"""A copy of a bank that is written to meanwhile is a bank: docs/operations.md says in which order to copy."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from services.bank.reader import BankReader
from services.bank.schema import BankLayout
from tests.integration.serve_desk import MODEL, Desk

LAYOUT = BankLayout(MODEL.model_id, MODEL.d_key, MODEL.memory_bytes)


def copy_bank(source: Path, target: Path) -> None:
    """The manifests first, then what they name: every file of a manifest was there before it was."""
    for table in sorted(source.glob("*.lance")):
        shutil.copytree(table / "_versions", target / table.name / "_versions")
    for table in sorted(source.glob("*.lance")):
        for part in sorted(table.iterdir()):
            if part.name != "_versions":
                shutil.copytree(part, target / table.name / part.name)


@pytest.mark.timeout(120)
def test_a_copy_taken_under_load_answers_and_can_be_written_to(tmp_path: Path) -> None:
    desk, stop = Desk(str(tmp_path / "bank")), threading.Event()
    desk.publish("doc-0", "First", "The lighthouse of Ostrava Bay reopened.")
    written = [1]

    def write() -> None:
        while not stop.is_set():
            desk.publish(f"doc-{written[0]}", "More", f"Note number {written[0]} about the harbour.")
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while written[0] < 20:
            stop.wait(0.01)
        before = written[0]
        copy_bank(tmp_path / "bank", tmp_path / "copy")
        after = written[0]
    finally:
        stop.set()
        writer.join()
        desk.close()
    restored = BankReader(str(tmp_path / "copy"), LAYOUT, 0.0, {})
    assert before <= restored.stats().documents <= after + 1
    hits = restored.search(
        MODEL.query_keys(["Who reopened the lighthouse of Ostrava Bay?"]).vectors, 1, "default", None
    )
    assert hits[0][0].doc_id == "doc-0"
    again = Desk(str(tmp_path / "copy"))
    again.publish("late", "Late", "Something that came after the copy.")
    again.close()
    assert [one.title for one in restored.history("late", "default")] == ["Late"]
