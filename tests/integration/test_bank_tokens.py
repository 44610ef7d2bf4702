"""Claims about the encoder's tokens in a bank: they order what is found, stay with their rows, and older banks do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest

from cmt_core.retrieval.late_interaction import pack_tokens
from cmt_core.retrieval.ranking import HYBRID
from services.bank.reader import BankReader
from services.bank.records import Chunk, DocumentWrite
from services.bank.reindex import reindex_bank
from services.bank.schema import SCHEMA_KEY
from services.bank.store import BankStore
from services.bank.transfer import export_bank, import_bank
from services.bank.writer import BankWriter
from services.errors import BankUnavailable
from tests.integration.test_bank import LAYOUT, T0, at, seconds_clock, write

SIGNS = np.where(np.random.default_rng(0).normal(size=(4, 64)) > 0, 1.0, -1.0).astype(np.float32)
KEY = np.ones((1, LAYOUT.d_key), dtype=np.float32)
TEXT = "A harbour."


def told(doc_id: str, offset: int, number: int | None) -> DocumentWrite:
    """A document that differs from the others in its token alone, or has none."""
    packed = b"" if number is None else pack_tokens(SIGNS[[number]], [0])
    chunk = Chunk(TEXT, KEY[0], TEXT.encode().ljust(32, b"."), 3, packed)
    return replace(write(doc_id, at(offset), TEXT), chunks=(chunk,))


def order(uri: str, number: int, second: float | None = None) -> list[str]:
    reader = BankReader(uri, LAYOUT, 0, ranking=HYBRID)
    as_of = None if second is None else T0 + timedelta(seconds=second)
    hits = reader.search(KEY, 4, "default", as_of, texts=["harbour"], tokens=[SIGNS[[number]]])[0]
    return [hit.doc_id for hit in hits]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "bank")
    with BankWriter(uri, LAYOUT, maintain_every=0, clock=seconds_clock()) as writer:
        writer.commit([told("a", 0, 0), told("b", 1, 1), told("c", 2, 2)])
    return uri


@pytest.mark.parametrize(("number", "first"), [(0, "a"), (1, "b"), (2, "c")])
def test_the_document_with_the_questions_token_comes_first(uri: str, number: int, first: str) -> None:
    assert order(uri, number)[0] == first


def test_a_new_version_has_its_own_tokens_and_the_past_keeps_the_old(uri: str) -> None:
    with BankWriter(uri, LAYOUT, maintain_every=0, clock=lambda: T0 + timedelta(seconds=9)) as writer:
        writer.commit([told("a", 3, 3)])
    assert order(uri, 3)[0] == "a"
    assert order(uri, 0, second=5)[0] == "a"


def test_tokens_of_another_number_of_questions_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="tokens of 2 questions for 1 keys"):
        BankReader(uri, LAYOUT, 0, ranking=HYBRID).search(KEY, 1, texts=["x"], tokens=[SIGNS, SIGNS])


def test_they_are_carried_to_another_address(uri: str, tmp_path: Path) -> None:
    export_bank(BankStore(uri), tmp_path / "bank.parquet")
    import_bank(BankStore(str(tmp_path / "copy")), tmp_path / "bank.parquet")
    assert order(str(tmp_path / "copy"), 2)[0] == "c"


@pytest.fixture
def old(uri: str) -> str:
    """As a program before version 7 has left it."""
    table = lancedb.connect(uri).open_table("memories")
    table.drop_columns(["tokens"])
    table.to_lance().update_schema_metadata({SCHEMA_KEY.decode(): "6"})
    return uri


def test_older_bank_is_read_without_and_what_is_written_later_has_them(old: str) -> None:
    assert order(old, 2) == ["a", "b", "c"]
    with BankWriter(old, LAYOUT, maintain_every=0, clock=lambda: T0 + timedelta(seconds=9)) as writer:
        writer.commit([told("b", 3, 1), told("d", 4, 3)])
    assert order(old, 1)[0] == "b"
    assert order(old, 3)[0] == "d"
    assert order(old, 1)[-1] == "d"  # those without are between the likely and the unlikely


def encode(rows: Sequence[tuple[str, str]]) -> list[Chunk]:
    return [
        Chunk(text, KEY[0], text.encode().ljust(32, b"."), 3, pack_tokens(SIGNS[[number]], [0]))
        for number, (_, text) in enumerate(rows)
    ]


def test_encoding_again_with_the_same_checkpoint_fills_them_in(old: str) -> None:
    with pytest.raises(BankUnavailable, match="--again encodes it once more"):
        reindex_bank(old, None, LAYOUT, encode)
    for _ in range(3):  # from any table to another one
        assert reindex_bank(old, None, LAYOUT, encode, again=True) == 3
        assert order(old, 2)[0] == "c"
    assert len(lancedb.connect(old).list_tables().tables) == 3  # the first, the current one and the writers' epochs
