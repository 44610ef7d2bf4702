"""Claims about one commit of a bank: what it writes, and what others may do to the table meanwhile; on real LanceDB tables."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest

from cmt_core.retrieval.ranking import Ranking
from services.bank.current_versions import find_current_versions
from services.bank.indexing import update_indexes
from services.bank.reader import BankReader
from services.bank.replacement import closed_rows, staged_replacement
from services.bank.writer import BankWriter
from services.errors import BankUnavailable
from tests.integration.test_bank import LAYOUT, T0, at, delete, key_of, seconds_clock, texts, write


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "bank")


def opened(uri: str) -> BankWriter:
    return BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=0, clock=seconds_clock())


def table_of(uri: str) -> Any:
    return lancedb.connect(uri).open_table("memories")


def files(uri: str, folder: str) -> set[str]:
    return {path.name for path in Path(uri, "memories.lance", folder).glob("*")}


def meanwhile(monkeypatch: pytest.MonkeyPatch, writer: BankWriter, act: Callable[[], object]) -> None:
    """Lets something happen in the next commit once, after it has looked up what it closes and before it writes."""
    check = writer._fence.check

    def acting() -> None:
        monkeypatch.setattr(writer._fence, "check", check)
        act()
        check()

    monkeypatch.setattr(writer._fence, "check", acting)


def test_upsert_writes_one_fragment_and_a_mark_for_each_fragment_with_a_row_it_closes(uri: str) -> None:
    with opened(uri) as writer:
        for first in (0, 10, 20):
            writer.commit([write(f"d{number}", at(number), "old") for number in range(first, first + 10)])
        untouched = table_of(uri).to_lance().get_fragment(1).metadata
        data, marks = files(uri, "data"), files(uri, "_deletions")
        writer.commit([write("d3", at(30), "new"), write("d4", at(31), "new"), write("d25", at(32), "new")])
    assert len(files(uri, "data") - data) == 1
    assert len(files(uri, "_deletions") - marks) == 2
    fragments = {one.fragment_id: one.metadata for one in table_of(uri).to_lance().get_fragments()}
    assert fragments[1] == untouched
    assert [fragments[number].num_deletions for number in (0, 2)] == [2, 1]


def test_fragment_without_a_row_left_is_gone(uri: str) -> None:
    with opened(uri) as writer:
        writer.commit([write("a", at(0), "old"), write("b", at(1), "old")])
        writer.commit([write("a", at(2), "new"), delete("b", at(3))])
    assert [one.count_rows() for one in table_of(uri).to_lance().get_fragments()] == [4]
    assert texts(BankReader(uri, LAYOUT, 0), T0 + timedelta(seconds=1)) == {"a": ["old"], "b": ["old"]}


def test_closed_row_keeps_every_column_and_gets_its_end(uri: str) -> None:
    about = {"title": "T", "url": "http://u", "source": "s", "published_at": T0, "expires_at": T0 + timedelta(days=9)}
    with opened(uri) as writer:
        writer.commit([write("a", at(0), "one", "two", **about), write("b", at(1), "three", **about)])
        before = rows_by_place(uri)
        writer.commit([write("a", at(2), "new"), delete("b", at(3))])
        after = rows_by_place(uri)
    end = T0 + timedelta(seconds=2)
    assert len(before) == 3
    for place, row in before.items():
        closed = "deleted_at" if place[0] == "b" else "superseded_at"
        assert after[place] == row | {closed: end}


def rows_by_place(uri: str) -> dict[tuple[str, int, int], dict[str, Any]]:
    rows = table_of(uri).to_lance().to_table().to_pylist()
    return {(row["doc_id"], row["offset"], row["chunk_no"]): row for row in rows}


def test_index_built_during_a_commit_neither_stops_it_nor_shows_closed_rows(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = BankReader(uri, LAYOUT, 0, ranking=Ranking("hybrid"))
    with opened(uri) as writer:
        writer.commit([write(f"d{number}", at(number), f"word{number} old") for number in range(300)])
        version = writer.commit([write("d0", at(300), "word0 old")]).version
        meanwhile(monkeypatch, writer, lambda: update_indexes(table_of(uri), ann_rows=100))
        report = writer.commit(
            [write(f"d{number}", at(400 + number), f"word{number} new") for number in range(0, 300, 2)]
        )
        assert report.version > version + 1  # the builds were committed in between
        update_indexes(table_of(uri), ann_rows=100)
    for number in (0, 1, 150, 298):
        for moment, state in ((None, "old" if number % 2 else "new"), (T0 + timedelta(seconds=2), "old")):
            key, words = key_of(f"word{number} {state}"), f"word{number}"
            hit = reader.search(key[None], 1, as_of=moment, texts=[words])[0][0]
            assert (hit.doc_id, hit.text) == (f"d{number}", f"word{number} {state}")
    assert sorted(map(len, texts(reader).values())) == [1] * 300
    assert [version.text for version in reader.history("d0")] == ["word0 new", "word0 old", "word0 old"]


def compact(uri: str) -> None:
    table_of(uri).to_lance().optimize.compact_files(target_rows_per_fragment=1000)


def erase(uri: str) -> None:
    table_of(uri).delete("doc_id = 'a'")


@pytest.mark.parametrize("act", [compact, erase])
def test_commit_whose_rows_have_moved_or_gone_changes_nothing_and_can_be_repeated(
    act: Callable[[str], None], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(uri) as writer:
        writer.commit([write("a", at(0), "old"), write("c", at(1), "kept")])
        writer.commit([write("b", at(2), "old")])
        meanwhile(monkeypatch, writer, lambda: act(uri))
        with pytest.raises(BankUnavailable):
            writer.commit([write("a", at(3), "new"), write("b", at(4), "new")])
        reader = BankReader(uri, LAYOUT, 0)
        assert texts(reader) == {"b": ["old"], "c": ["kept"]} | ({"a": ["old"]} if act is compact else {})
        writer.commit([write("a", at(3), "new"), write("b", at(4), "new")])
        assert texts(reader) == {"a": ["new"], "b": ["new"], "c": ["kept"]}
        assert len(reader.history("b")) == 2


def test_files_of_a_commit_that_was_never_made_show_nowhere_and_are_erased(uri: str) -> None:
    with opened(uri) as writer:
        writer.commit([write("a", at(0), "old"), write("b", at(1), "old")])
        table = table_of(uri)
        heads = find_current_versions(table, [("default", "a")], uri)
        ending = dict.fromkeys(heads.of["default", "a"].row_ids, False)
        closed = closed_rows(table, heads, ending, LAYOUT, T0)
        secret = closed.set_column(closed.schema.get_field_index("text"), "text", pa.array(["Zanzibarquartz"]))
        staged_replacement(table.to_lance(), ending, secret.cast(closed.schema))
        assert len(files(uri, "data")) == 2
        assert texts(BankReader(uri, LAYOUT, 0)) == {"a": ["old"], "b": ["old"]}
        writer.commit([write("a", at(2), "new")])
        writer.purge("b")
        contents = [path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()]
        assert not any(b"Zanzibarquartz" in content for content in contents)
        assert texts(BankReader(uri, LAYOUT, 0)) == {"a": ["new"]}
