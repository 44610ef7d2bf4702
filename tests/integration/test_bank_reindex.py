"""Claims about re-encoding a bank for another checkpoint, and about bringing an older bank up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS

from cmt_core.retrieval.ranking import Ranking
from services.bank.migrations import MIGRATIONS
from services.bank.reader import BankReader
from services.bank.records import Chunk
from services.bank.reindex import reindex_bank
from services.bank.schema import SCHEMA_KEY, SCHEMA_VERSION, BankLayout, schema_version
from services.bank.writer import BankWriter
from services.errors import BankMismatch, BankUnavailable
from tests.integration.test_bank import LAYOUT, T0, all_hits, at, delete, key_of, seconds_clock, texts, write

OTHER = BankLayout("checkpoint-b", d_key=8, memory_bytes=48)


def encode(rows: Sequence[tuple[str, str]]) -> list[Chunk]:
    """The other checkpoint's way: smaller keys, larger memories."""
    return [
        Chunk(text, np.full(OTHER.d_key, 1.0 + len(text)), text.encode().ljust(48, b"-"), len(text)) for _, text in rows
    ]


def found(reader: BankReader, second: float) -> list[tuple[str, str, bytes]]:
    hits = reader.search(np.ones((1, OTHER.d_key)), 1000, "default", T0 + timedelta(seconds=second), every_chunk=True)[
        0
    ]
    return sorted((hit.doc_id, hit.text, hit.memory) for hit in hits)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "bank")
    with BankWriter(uri, LAYOUT, maintain_every=0, clock=seconds_clock()) as writer:
        writer.commit([write("a", at(0), "a0", "a1"), write("b", at(1), "b0"), write("c", at(2), "c0")])
        writer.commit([write("a", at(3), "a2"), delete("b", at(4))])
    return uri


def test_reindexed_bank_has_the_same_texts_at_every_time_with_the_new_memories(uri: str) -> None:
    old = BankReader(uri, LAYOUT, 0)
    states = [texts(old, T0 + timedelta(seconds=second)) for second in (0.5, 1, 2, 9)]
    assert reindex_bank(uri, None, OTHER, encode) == 6
    new = BankReader(uri, OTHER, 0)
    for second, state in zip((0.5, 1, 2, 9), states, strict=True):
        expected = sorted(
            (doc_id, text, text.encode().ljust(48, b"-")) for doc_id, own in state.items() for text in own
        )
        assert found(new, second) == expected
    with pytest.raises(BankMismatch, match="of checkpoint checkpoint-b, this is checkpoint-a"):
        old.stats()
    with BankWriter(uri, OTHER, maintain_every=0) as writer:
        assert writer.commit([delete("b", at(4))]).stale == 1


def test_old_memories_serve_and_ingest_goes_on_until_the_switch(uri: str) -> None:
    """While rows are encoded, others come, are replaced, and are erased: the new table has what the old one has at the end."""
    reader = BankReader(uri, LAYOUT, 0)
    writer = BankWriter(uri, LAYOUT, maintain_every=0, clock=lambda: T0 + timedelta(hours=1))
    writer.commit([write("a", at(4), "Erasedword")])
    steps = iter([lambda: writer.commit([write("d", at(5), "d0"), write("c", at(6), "c1")])])

    def encode_while_others_write(rows: Sequence[tuple[str, str]]) -> list[Chunk]:
        assert "c" in texts(reader)
        next(steps, lambda: None)()
        return encode(rows)

    def report(line: str) -> None:
        if line == "waiting for ingest to end":
            writer.purge("a")
            writer.close()

    reindex_bank(uri, None, OTHER, encode_while_others_write, report=report)
    assert [row[:2] for row in found(BankReader(uri, OTHER, 0), 9999)] == [("c", "c1"), ("d", "d0")]
    assert BankReader(uri, OTHER, 0).history("a") == []
    assert not any(b"erasedword" in path.read_bytes().lower() for path in Path(uri).rglob("*") if path.is_file())


def test_rows_with_times_before_the_mark_are_not_missed(uri: str) -> None:
    """The clock was set back between two writers: what the second one commits looks old."""

    def report(line: str) -> None:
        if line == "waiting for ingest to end":
            with BankWriter(uri, LAYOUT, maintain_every=0, clock=lambda: T0) as writer:
                writer.commit([write("late", at(9), "late")])

    reindex_bank(uri, None, OTHER, encode, report=report)
    assert [row[0] for row in found(BankReader(uri, OTHER, 0), 9)] == ["a", "c", "late"]


def test_interrupted_reindex_leaves_the_bank_as_it_was_and_can_be_repeated(uri: str) -> None:
    def broken(rows: Sequence[tuple[str, str]]) -> list[Chunk]:
        raise KeyboardInterrupt

    before = texts(BankReader(uri, LAYOUT, 0))
    with pytest.raises(KeyboardInterrupt):
        reindex_bank(uri, None, OTHER, broken)
    assert texts(BankReader(uri, LAYOUT, 0)) == before
    assert reindex_bank(uri, None, OTHER, encode) == 6


def test_bank_is_reindexed_again_and_back(uri: str) -> None:
    third = replace(OTHER, model_id="checkpoint-c")
    reindex_bank(uri, None, OTHER, encode)
    reindex_bank(uri, None, third, encode)
    assert len(found(BankReader(uri, third, 0), 9)) == 2
    assert sorted(lancedb.connect(uri).list_tables().tables) == ["memories", "memories-checkpoint-c", "writer_epochs"]


def test_reindex_without_need_or_without_a_bank_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BankUnavailable, match="is of checkpoint checkpoint-a already"):
        reindex_bank(uri, None, LAYOUT, encode)
    with pytest.raises(BankUnavailable, match="there is no bank at"):
        reindex_bank(str(tmp_path / "missing"), None, OTHER, encode)
    with BankWriter(uri, LAYOUT), pytest.raises(BankUnavailable, match="another writer has it open"):
        reindex_bank(uri, None, OTHER, encode, lock_wait_s=0)


def padded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Memories as the first version kept them."""
    memories = [(memory or b"").ljust(LAYOUT.memory_bytes, b"\0") for memory in batch["memory"].to_pylist()]
    return pa.record_batch([pa.array(memories, pa.binary(LAYOUT.memory_bytes))], names=["old"])


def test_bank_of_the_first_version_is_brought_up_to_date_by_the_writer(uri: str) -> None:
    table = lancedb.connect(uri).open_table("memories")
    table.drop_index("text_idx")
    table.drop_columns(["seq", "words"])
    table.to_lance().add_columns(padded, read_columns=["memory"])
    table.checkout_latest()
    table.drop_columns(["memory"])
    table.alter_columns({"path": "old", "rename": "memory"})
    table.to_lance().update_schema_metadata({SCHEMA_KEY.decode(): None})
    before = all_hits(BankReader(uri, LAYOUT, 0))  # a reader takes it as it is
    assert {hit.doc_id for hit in before} == {"a", "c"}
    with BankWriter(uri, LAYOUT, maintain_every=0) as writer:
        assert writer.commit([write("c", at(2), "c0")]).stale == 1
    table = lancedb.connect(uri).open_table("memories")
    assert schema_version(table.schema) == SCHEMA_VERSION == MIGRATIONS[-1].version
    assert "seq" in table.schema.names
    assert {one.name: one.columns for one in table.list_indices()}["text_idx"] == ["words"]
    assert table.schema.field("memory").type == pa.binary()
    assert all_hits(BankReader(uri, LAYOUT, 0)) == before


def test_words_of_a_bank_of_version_4_are_made_anew_and_it_serves_until_then(tmp_path: Path) -> None:
    """Its index is of the text itself, cut at what is no letter."""
    uri = str(tmp_path / "bank")
    with BankWriter(uri, LAYOUT, maintain_every=0) as writer:
        writer.commit(
            [
                write("a", at(0), "A bridge opened."),
                write("b", at(1), "霧島市で新しい橋が開通した。"),
                delete("c", at(2)),
            ]
        )
    table = lancedb.connect(uri).open_table("memories")
    table.drop_index("text_idx")
    table.drop_columns(["words"])
    table.create_index("text", config=FTS(), name="text_idx")
    table.to_lance().update_schema_metadata({SCHEMA_KEY.decode(): "4"})
    reader = BankReader(uri, LAYOUT, 0, ranking=Ranking("hybrid", 4.0))

    def best(text: str) -> tuple[str, bool]:
        key = (key_of("A bridge opened.") + key_of("霧島市で新しい橋が開通した。"))[None]
        first, second = reader.search(key, 2, texts=[text])[0]
        return first.doc_id, first.rank > second.rank + 1

    assert best("the bridge") == ("a", True)
    assert not best("橋")[1]
    with BankWriter(uri, LAYOUT, maintain_every=0) as writer:
        assert (best("the bridge"), best("橋")) == (("a", True), ("b", True))
        writer.commit([write("d", at(3), "大桥开通")])
        assert reader.search(key_of("x")[None], 1, texts=["大桥"])[0][0].doc_id == "d"


def test_bank_of_a_later_version_is_refused(uri: str) -> None:
    lancedb.connect(uri).open_table("memories").to_lance().update_schema_metadata({SCHEMA_KEY.decode(): "99"})
    for act in (lambda: BankReader(uri, LAYOUT).stats(), lambda: BankWriter(uri, LAYOUT)):
        with pytest.raises(BankUnavailable, match="version 99, this program knows versions up to"):
            act()
