"""Claims about searching a bank by key and by words together, on a real LanceDB table."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest

from cmt_core.retrieval.ranking import Ranking
from services.bank import full_text_search
from services.bank.document_filter import DocumentFilter
from services.bank.reader import BankReader
from services.bank.records import DocumentWrite
from services.bank.writer import BankWriter
from tests.integration.test_bank import LAYOUT, T0, at, delete, key_of, seconds_clock, write

QUERY = np.eye(LAYOUT.d_key, dtype=np.float32)[:1]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "bank")


@pytest.fixture
def reader(uri: str) -> BankReader:
    return BankReader(uri, LAYOUT, 0, ranking=Ranking("hybrid", 4.0))


def near(document: DocumentWrite, cosine: float) -> DocumentWrite:
    """The document with all its keys at a cosine of the query's."""
    key = np.zeros(LAYOUT.d_key, np.float32)
    key[:2] = cosine, np.sqrt(1 - cosine**2)
    return replace(document, chunks=tuple(replace(chunk, key=key) for chunk in document.chunks))


def filled(uri: str) -> BankWriter:
    """Near documents without the word, and one far away that has it."""
    writer = BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=0, clock=seconds_clock())
    others = [near(write(f"d{n}", at(n), f"nothing of interest, {n}"), 0.9 - n / 100) for n in range(9)]
    writer.commit([*others, near(write("storm", at(20), "Storms hit the Zanzibar coast", source="wire"), 0.1)])
    return writer


def found(reader: BankReader, text: str, k: int = 3, **options: object) -> list[str]:
    return [hit.doc_id for hit in reader.search(QUERY, k, texts=[text], **options)[0]]


def test_document_is_found_by_its_words_as_soon_as_it_is_committed_and_after_indexing(
    uri: str, reader: BankReader
) -> None:
    with filled(uri) as writer:
        assert found(reader, "What did the storm do in Zanzibar?")[0] == "storm"
        writer.optimize()
        assert found(reader, "What did the storm do in Zanzibar?")[0] == "storm"
        writer.commit([near(write("second", at(30), "Zanzibar Zanzibar, another storm in Zanzibar"), 0.0)])
        assert set(found(reader, "storm Zanzibar", k=2)) == {"storm", "second"}


@pytest.mark.parametrize("moment", [None, T0 + timedelta(seconds=1)])
def test_large_bank_with_a_keys_index_finds_by_words_what_the_question_may_see(
    uri: str, reader: BankReader, moment: datetime | None
) -> None:
    """Most rows with the word are gone or of another namespace: those that are left are found all the same."""
    with filled(uri) as writer:
        crowd = [near(write(f"c{n}", at(100 + n), f"Zanzibar report {n}"), 0.2) for n in range(300)]
        writer.commit(crowd)  # second 2
        writer.commit([delete(f"c{n}", at(500 + n)) for n in range(300)])  # second 3
        writer.commit([near(write(f"o{n}", at(900 + n), "Zanzibar", namespace="other"), 0.3) for n in range(40)])
        writer._ann_rows = 100
        writer.optimize()
        assert found(reader, "coast of Zanzibar", as_of=moment)[0] == "storm"
        assert found(reader, "coast of Zanzibar", as_of=T0 + timedelta(seconds=2))[0] == "storm"
        assert found(reader, "report 77", k=1, as_of=T0 + timedelta(seconds=2)) == ["c77"]
        assert not set(found(reader, "Zanzibar report 7", k=5, as_of=moment)) & {f"c{n}" for n in range(300)}
        assert all(one.startswith("o") for one in found(reader, "Zanzibar", k=5, namespace="other"))


def test_score_stays_the_cosine_whatever_the_order(uri: str, reader: BankReader) -> None:
    with filled(uri):
        first, second = reader.search(QUERY, 2, texts=["Zanzibar"])[0]
    assert (first.doc_id, second.doc_id) == ("storm", "d0")
    assert (first.score, second.score) == (pytest.approx(0.1, abs=1e-2), pytest.approx(0.9, abs=1e-2))
    assert first.rank == pytest.approx(first.score + 4.0 + 0.5)  # its one word is there: half of proximity
    assert second.rank == pytest.approx(second.score)


def test_words_find_nothing_that_the_question_may_not_see(uri: str, reader: BankReader) -> None:
    with filled(uri) as writer:
        writer.optimize()
        assert "storm" not in found(reader, "Zanzibar", as_of=T0)
        assert "storm" not in found(reader, "Zanzibar", namespace="other")
        assert "storm" not in found(reader, "Zanzibar", wanted=DocumentFilter(sources=("paper",)))
        assert found(reader, "Zanzibar", wanted=DocumentFilter(sources=("wire",))) == ["storm"]
        writer.commit([delete("storm", at(40))])  # second 2
        assert "storm" not in found(reader, "Zanzibar")
        assert found(reader, "Zanzibar", as_of=T0 + timedelta(seconds=1))[0] == "storm"


SCRIPTS = {
    "ja": "霧島市で新しい橋が開通した。設計したのは中野遙だ。",
    "zh": "北京市人民政府宣布新大桥开通。",
    "th": "สะพานใหม่เปิดใช้แล้วในกรุงเทพมหานคร",
    "km": "ភ្នំពេញមានស្ពានថ្មី។",
    "shy": "Das Gesamt\u00adkonzept wurde vorgestellt.",
    "nfd": "The Cafe\u0301 Zu\u0308rich was bought by Joa\u0303o Pe\u0301res.",
    "zero": "Vole\u200b ba\u200bkery was so\u2060ld.",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("橋", "ja"),
        ("新しい橋を設計したのは誰？", "ja"),
        ("大桥", "zh"),
        ("สะพาน", "th"),
        ("ស្ពាន", "km"),
        ("Gesamtkonzept", "shy"),
        ("Gesamt\u00adkonzept", "shy"),
        ("João", "nfd"),
        ("Zurich", "nfd"),
        ("bakery", "zero"),
    ],
)
def test_words_of_every_script_and_spelling_are_found_before_and_after_indexing(
    uri: str, reader: BankReader, text: str, expected: str
) -> None:
    with BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=0, clock=seconds_clock()) as writer:
        others = [near(write(f"d{n}", at(n), f"nothing of interest, {n}"), 0.9) for n in range(9)]
        scripts = [near(write(name, at(20 + n), news), 0.1) for n, (name, news) in enumerate(SCRIPTS.items())]
        writer.commit([*others, *scripts])
        assert found(reader, text)[0] == expected
        writer.optimize()
        hits = reader.search(QUERY, 1, texts=[text])[0]
    assert (hits[0].doc_id, hits[0].text) == (expected, SCRIPTS[expected])


def test_bank_without_a_words_index_is_searched_by_words_too(uri: str, reader: BankReader) -> None:
    filled(uri).close()
    lancedb.connect(uri).open_table("memories").drop_index("text_idx")
    assert found(reader, "Zanzibar")[0] == "storm"


def test_of_a_long_unindexed_tail_the_candidates_of_the_keys_are_scored(
    uri: str, reader: BankReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(uri) as writer:
        writer.optimize()
        writer.commit([near(write("late", at(50), "Zanzibar again"), 0.5)])
        monkeypatch.setattr(full_text_search, "TAIL_ROWS", 0)
        assert set(found(reader, "Zanzibar", k=2)) == {"late", "storm"}


@pytest.mark.parametrize("text", ["", "the of and", "???", "\"'`\\ AND (title:x OR *", "漢字 \U0001f4f0", "x" * 5000])
def test_question_without_known_words_is_answered_by_the_keys(uri: str, reader: BankReader, text: str) -> None:
    with filled(uri):
        assert found(reader, text) == ["d0", "d1", "d2"]


def test_chunks_of_a_document_count_once_unless_asked(uri: str, reader: BankReader) -> None:
    with BankWriter(uri, LAYOUT, maintain_every=0) as writer:
        long = near(write("long", at(0), *(f"part {n}" for n in range(100))), 0.9)
        writer.commit([long, write("a", at(1), "x"), write("b", at(2), "y")])
        hits = reader.search(QUERY, 3, texts=["part"])[0]
        assert sorted(hit.doc_id for hit in hits) == ["a", "b", "long"]
        every = reader.search(QUERY, 3, texts=["part"], every_chunk=True)[0]
        assert [hit.doc_id for hit in every] == ["long"] * 3


def test_texts_must_fit_the_keys(uri: str, reader: BankReader) -> None:
    with pytest.raises(ValueError, match="2 texts for 1 keys"):
        reader.search(QUERY, 1, texts=["a", "b"])


def test_each_question_of_a_batch_has_its_own_words(uri: str, reader: BankReader) -> None:
    with filled(uri):
        keys = np.concatenate([QUERY, key_of("other")[None]])
        first, second = reader.search(keys, 1, texts=["interest 7", "Zanzibar"])
    assert [hit.doc_id for hit in (*first, *second)] == ["d7", "storm"]


def test_words_that_stand_together_come_before_words_that_are_apart(uri: str) -> None:
    """The two texts have the same words and key; the evaluation's index orders them alike (tests/unit/test_core_proximity.py)."""
    with BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=0, clock=seconds_clock()) as writer:
        apart, together = (
            "Zanzibar is warm. Boats sail. A storm came.",
            "A Zanzibar storm came. Boats sail. It is warm.",
        )
        writer.commit([near(write("a", at(1), apart), 0.5), near(write("b", at(2), together), 0.5)])
    ranked = BankReader(uri, LAYOUT, 0, ranking=Ranking("hybrid")).search(QUERY, 2, texts=["Zanzibar storm"])[0]
    plain = BankReader(uri, LAYOUT, 0, ranking=Ranking("hybrid", 0.4, 0.0)).search(QUERY, 2, texts=["Zanzibar storm"])[
        0
    ]
    assert [hit.doc_id for hit in ranked] == ["b", "a"]
    assert ranked[0].rank == pytest.approx(plain[[hit.doc_id for hit in plain].index("b")].rank + 1.0)
    assert [hit.score for hit in ranked] == pytest.approx([0.5, 0.5], abs=1e-3)
