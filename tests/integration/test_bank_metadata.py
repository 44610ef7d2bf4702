"""Metadata in a real bank: it is kept as it came, filters the search, and reaches banks of older versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest

from cmt_core.retrieval.ranking import Ranking
from services.bank.document_filter import DocumentFilter
from services.bank.labels import label
from services.bank.reader import BankReader
from services.bank.records import Chunk
from services.bank.reindex import reindex_bank
from services.bank.schema import SCHEMA_KEY, BankLayout
from services.bank.store import BankStore
from services.bank.transfer import export_bank, import_bank
from services.bank.writer import BankWriter
from tests.integration.test_bank import LAYOUT, all_hits, at, delete, write

SECTIONS: dict[str, Any] = {
    "market": {"section": "local", "tags": ["market", "eels"], "views": 212, "place": {"name": "Ollen"}},
    "harbour": {"section": "it's", "tags": ["harbour"], "pinned": True, "nul": "a\0b"},
    "list": ["section", "local"],
    "plain": None,
}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "bank")


@pytest.fixture
def reader(uri: str) -> BankReader:
    return BankReader(uri, LAYOUT, 0)


def fill(writer: BankWriter) -> None:
    writer.commit(
        [
            write(name, at(n), f"{name} one", f"{name} two", metadata=one)
            for n, (name, one) in enumerate(SECTIONS.items())
        ]
    )


def found(reader: BankReader, *groups: tuple[str, ...], **more: Any) -> list[str]:
    keys = np.ones((1, LAYOUT.d_key))
    return sorted(hit.doc_id for hit in reader.search(keys, 10, wanted=DocumentFilter(labels=groups, **more))[0])


def test_metadata_is_kept_as_it_came_with_every_chunk(uri: str, reader: BankReader) -> None:
    with BankWriter(uri, LAYOUT) as writer:
        fill(writer)
    assert {(hit.doc_id, hit.chunk_no, json.dumps(hit.metadata)) for hit in all_hits(reader)} == {
        (name, chunk, json.dumps(one)) for name, one in SECTIONS.items() for chunk in (0, 1)
    }
    assert [version.metadata for version in reader.history("market")] == [SECTIONS["market"]]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(label("section", "local"),)], ["market"]),
        ([(label("section", "it's"),)], ["harbour"]),
        ([(label("section", "local"), label("section", "it's"))], ["harbour", "market"]),
        ([(label("tags", "eels"),)], ["market"]),
        ([(label("views", 212),)], ["market"]),
        ([(label("pinned", True),)], ["harbour"]),
        ([(label("place.name", "Ollen"),)], ["market"]),
        ([(label("nul", "a\0b"),)], ["harbour"]),
        ([(label("section", "local"),), (label("tags", "market"),)], ["market"]),
        ([(label("section", "local"),), (label("tags", "harbour"),)], []),
        ([(label("section", "loc"),)], []),
        ([(label("section", "%"),)], []),
        ([(label("none", ""),)], []),
    ],
)
def test_search_is_narrowed_by_metadata(
    uri: str, reader: BankReader, groups: list[tuple[str, ...]], expected: list[str]
) -> None:
    with BankWriter(uri, LAYOUT) as writer:
        fill(writer)
    assert found(reader, *groups) == expected


def test_search_by_words_is_narrowed_too(uri: str) -> None:
    reader = BankReader(uri, LAYOUT, 0, ranking=Ranking("hybrid", 0.4, 0.0))
    with BankWriter(uri, LAYOUT) as writer:
        fill(writer)
        writer.optimize()
    for section, expected in (("local", ["market"]), ("none", [])):
        wanted = DocumentFilter(labels=((label("section", section),),))
        hits = reader.search(np.ones((1, LAYOUT.d_key)), 10, wanted=wanted, texts=["market harbour plain"])[0]
        assert [hit.doc_id for hit in hits] == expected


def test_an_update_brings_its_own_metadata_and_the_past_keeps_the_old(uri: str, reader: BankReader) -> None:
    with BankWriter(uri, LAYOUT) as writer:
        fill(writer)
        writer.commit([write("market", at(10), "now", metadata={"section": "city"}), delete("harbour", at(11))])
    assert found(reader, (label("section", "local"), label("section", "it's"))) == []
    assert found(reader, (label("section", "city"),)) == ["market"]
    assert [version.metadata for version in reader.history("market")] == [{"section": "city"}, SECTIONS["market"]]
    assert [version.metadata for version in reader.history("harbour")] == [SECTIONS["harbour"]]


@pytest.fixture
def old(uri: str) -> str:
    """A bank as it was before metadata was kept."""
    with BankWriter(uri, LAYOUT) as writer:
        fill(writer)
    table = lancedb.connect(uri).open_table("memories")
    table.drop_columns(["metadata", "labels"])
    table.to_lance().update_schema_metadata({SCHEMA_KEY.decode(): "5"})
    return uri


def test_older_bank_is_read_without_metadata_until_its_writer_brings_it_up_to_date(
    old: str, reader: BankReader
) -> None:
    assert {hit.doc_id: hit.metadata for hit in all_hits(reader)} == dict.fromkeys(SECTIONS)
    assert found(reader, (label("section", "local"),)) == []
    assert reader.history("market")[0].metadata is None
    with BankWriter(old, LAYOUT) as writer:
        writer.commit([write("market", at(10), "now", metadata={"section": "city"}), delete("plain", at(11))])
    assert found(reader, (label("section", "city"),)) == ["market"]
    assert [version.metadata for version in reader.history("market")] == [{"section": "city"}, None]
    assert sorted({hit.doc_id for hit in all_hits(reader)}) == ["harbour", "list", "market"]


OTHER = BankLayout("checkpoint-b", LAYOUT.d_key, LAYOUT.memory_bytes)


def encode(pairs: Any) -> Any:
    return [Chunk(text, np.ones(OTHER.d_key), bytes(OTHER.memory_bytes), 3) for _, text in pairs]


@pytest.mark.parametrize("make", ["uri", "old"])
def test_metadata_goes_with_its_bank_to_another_checkpoint(make: str, request: pytest.FixtureRequest, uri: str) -> None:
    request.getfixturevalue(make)
    if make == "uri":
        with BankWriter(uri, LAYOUT) as writer:
            fill(writer)
    reindex_bank(uri, None, OTHER, encode)
    kept = SECTIONS if make == "uri" else dict.fromkeys(SECTIONS)
    reader = BankReader(uri, OTHER, 0)
    assert {hit.doc_id: hit.metadata for hit in all_hits(reader)} == kept
    assert found(reader, (label("section", "local"),)) == (["market"] if make == "uri" else [])


def test_metadata_is_carried_to_another_address(uri: str, tmp_path: Path) -> None:
    with BankWriter(uri, LAYOUT) as writer:
        fill(writer)
    export_bank(BankStore(uri), tmp_path / "bank.parquet")
    import_bank(BankStore(str(tmp_path / "copy")), tmp_path / "bank.parquet")
    copy = BankReader(str(tmp_path / "copy"), LAYOUT, 0)
    assert {hit.doc_id: hit.metadata for hit in all_hits(copy)} == SECTIONS
    assert found(copy, (label("tags", "eels"),)) == ["market"]
