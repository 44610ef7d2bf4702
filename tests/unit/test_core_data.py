"""Question files are read line by line with exact complaints; the training mix holds open sources within their limits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cmt_core.data.qa import QAExample, QuestionedDocument, by_document, read_qa
from cmt_core.data.training_mix import OPEN_SOURCES, Source, choose_documents
from cmt_core.errors import DataError

GOOD = {"doc_id": "d1", "title": "News", "text": "It rained.", "question": "What?", "answers": ["rain", "It rained"]}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["qa.jsonl", "qa.jsonl.gz"])
def test_plain_and_gzip_files_give_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, GOOD, "", {**GOOD, "doc_id": 2, "title": None, "source": "mine", "extra": 1})
    assert list(read_qa(path)) == [
        QAExample("d1", "News", "It rained.", "What?", ("rain", "It rained"), ""),
        QAExample("2", "", "It rained.", "What?", ("rain", "It rained"), "mine"),
    ]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ('{"doc_id": ', "not a JSON object of a question"),
        ("[1, 2]", "not a JSON object of a question"),
        ("null", "not a JSON object of a question"),
        ({**GOOD, "answers": "rain"}, "not a JSON object of a question"),
        ({**GOOD, "answers": None}, "not a JSON object of a question"),
        ({**GOOD, "answers": []}, "must not be empty"),
        ({**GOOD, "text": " \n"}, "must not be empty"),
        ({**GOOD, "question": ""}, "must not be empty"),
    ],
)
def test_malformed_row_names_file_and_line(tmp_path: Path, bad: dict[str, Any] | str, complaint: str) -> None:
    path = write(tmp_path / "qa.jsonl", GOOD, "", bad)
    rows = read_qa(path)
    next(rows)
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["doc_id", "text", "question", "answers"])
def test_missing_field_is_named_with_file_and_line(tmp_path: Path, field: str) -> None:
    path = write(tmp_path / "qa.jsonl", {key: value for key, value in GOOD.items() if key != field})
    with pytest.raises(DataError) as caught:
        list(read_qa(path))
    assert str(caught.value) == f"{path}:1: field '{field}' is missing"


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    whole = write(
        tmp_path / "whole.gz", *[{**GOOD, "doc_id": str(n), "text": f"{n * 7919} rained."} for n in range(500)]
    )
    packed = whole.read_bytes()
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "flipped.gz").write_bytes(packed[:60] + bytes(b ^ 0xFF for b in packed[60:90]) + packed[90:])
    (tmp_path / "text.gz").write_text("not gzip", encoding="utf-8")
    (tmp_path / "latin.jsonl").write_bytes(b'{"doc_id": "\xe9"}\n')
    for name in ("none.jsonl", "cut.gz", "flipped.gz", "text.gz", "latin.jsonl"):
        with pytest.raises(DataError) as caught:
            list(read_qa(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_rows_are_grouped_by_document_in_order_of_first_appearance() -> None:
    rows = [QAExample(d, "t", f"text {d}", q, (q.lower(),)) for d, q in (("b", "Q1"), ("a", "Q2"), ("b", "Q3"))]
    assert [(d.doc_id, d.questions) for d in by_document(iter(rows))] == [
        ("b", (("Q1", ("q1",)), ("Q3", ("q3",)))),
        ("a", (("Q2", ("q2",)),)),
    ]


def pool(source: str, n: int, questions: int = 6) -> list[QuestionedDocument]:
    asked = tuple((f"Q{i}?", (f"answer {i}",)) for i in range(questions))
    return [QuestionedDocument(f"{source}-{i}", "Title", f"Text {i}.", source, asked) for i in range(n)]


SOURCES = {
    "open": Source("CC BY 4.0", max_documents=5, max_questions=2),
    "bare": Source("MIT", titled=False),
}


def test_only_listed_sources_are_chosen() -> None:
    chosen = choose_documents(pool("open", 3) + pool("closed", 9) + pool("bare", 2), SOURCES, seed=0)
    assert sorted(document.source for document in chosen) == ["bare"] * 2 + ["open"] * 3


def test_limits_of_documents_and_questions_hold() -> None:
    chosen = choose_documents(pool("open", 50) + pool("bare", 7), SOURCES, seed=0)
    kept = [document for document in chosen if document.source == "open"]
    assert len({document.doc_id for document in kept}) == 5
    assert all(len(set(document.questions)) == 2 for document in kept)
    assert sum(document.source == "bare" for document in chosen) == 7
    assert all(document.title == ("" if document.source == "bare" else "Title") for document in chosen)


def test_choice_depends_on_the_seed_alone() -> None:
    documents = pool("open", 50) + pool("bare", 20)
    first, again, other = (choose_documents(documents, SOURCES, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_documents_with_long_answers_only_are_left_out() -> None:
    talk = QuestionedDocument("d", "", "Text.", "open", (("Why?", ("because " * 9,)),))
    assert choose_documents([talk], SOURCES, seed=0) == []


def test_every_open_source_has_a_licence() -> None:
    assert all(source.licence for source in OPEN_SOURCES.values())
