"""Published formats: small files in the true format are read, and a malformed row is named by file and line or entry."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from cmt_core.data.qa import QAExample
from cmt_core.data.readers import read_examples
from cmt_core.errors import DataError, MissingPackageError


def squad(version: str = "1.1", **last: Any) -> dict[str, Any]:
    """Two articles, three paragraphs, as on the SQuAD site; `last` replaces fields of the last question."""

    def asked(question: str, *answers: str) -> dict[str, Any]:
        return {"id": "56be", "question": question, "answers": [{"text": a, "answer_start": 4} for a in answers]}

    impossible = {"question": "Who?", "id": "5a", "is_impossible": True, "answers": [],
                  "plausible_answers": [{"text": "rain", "answer_start": 0}]}  # fmt: skip
    first = [asked("Where?", "in Varde", "Varde", "in Varde")] + ([impossible] if version == "v2.0" else [])
    return {
        "version": version,
        "data": [
            {"title": "New_Bridge", "paragraphs": [
                {"context": "It opened in Varde.", "qas": first},
                {"context": "It cost 42 million.", "qas": [asked("How much?", "42 million")]},
            ]},
            {"title": "Whales", "paragraphs": [{"context": "59 whales came.", "qas": [asked("How many?", "59") | last]}]},
        ],
    }  # fmt: skip


def write_json(path: Path, value: Any) -> Path:
    data = json.dumps(value).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(("name", "version"), [("train-v1.1.json", "1.1"), ("dev-v2.0.json.gz", "v2.0")])
def test_squad_of_both_versions_is_read_without_unanswerable_questions(tmp_path: Path, name: str, version: str) -> None:
    path = write_json(tmp_path / name, squad(version))
    assert list(read_examples(path)) == [
        QAExample("New_Bridge#1", "New Bridge", "It opened in Varde.", "Where?", ("in Varde", "Varde")),
        QAExample("New_Bridge#2", "New Bridge", "It cost 42 million.", "How much?", ("42 million",)),
        QAExample("Whales#1", "Whales", "59 whales came.", "How many?", ("59",)),
    ]


@pytest.mark.parametrize(
    ("last", "complaint"),
    [
        ({"answers": []}, "text, question and answers must not be empty"),
        ({"answers": "59"}, "answers is no list"),
        ({"answers": [{"txt": "59"}]}, "field 'text' is missing"),
        ({"question": " "}, "text, question and answers must not be empty"),
    ],
)
def test_malformed_squad_question_is_named_by_its_place(tmp_path: Path, last: dict[str, Any], complaint: str) -> None:
    path = write_json(tmp_path / "dev.json", squad(**last))
    rows = read_examples(path, "squad")
    assert [next(rows).question, next(rows).question] == ["Where?", "How much?"]
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value) == f"{path}: article 2, paragraph 1, question 1: {complaint}"


def test_file_that_is_not_squad_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"data": [\n{"title"', encoding="utf-8")
    with pytest.raises(DataError, match=r"cut\.json:2: not JSON"):
        list(read_examples(tmp_path / "cut.json"))
    for value in ([1], {"data": {}}):
        with pytest.raises(DataError, match="it has no list `data`"):
            list(read_examples(write_json(tmp_path / "other.json", value)))
    with pytest.raises(DataError, match="article 1: field 'title' is missing"):
        list(read_examples(write_json(tmp_path / "other.json", {"data": [3]})))
    with pytest.raises(DataError, match=r"none\.json can't be read"):
        list(read_examples(tmp_path / "none.json"))


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


STREAMING = ["", "text", "question", "answers", "question_ts"]
LONG = "It rained,\nall day.\n" * 10_000  # longer than the csv module's own limit, with line breaks


def test_streamingqa_is_read_with_answers_split_at_backslashes(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "streaming_test.csv", STREAMING,
        ["0", LONG, "How long?", "all day\\the whole day", "2020-01-01"],
        ["1", LONG, 'Did it "rain"?', "yes", "2020-01-02"],
    )  # fmt: skip
    first, second = read_examples(path)
    assert (first.question, first.answers, first.text) == ("How long?", ("all day", "the whole day"), LONG)
    assert (second.question, second.answers) == ('Did it "rain"?', ("yes",))
    assert first.doc_id == second.doc_id


def test_archivalqa_is_read_by_paragraphs(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "archivalqa.csv",
        ["id", "question", "answer", "doc_id", "para_num", "ans_paragraph", "ans_text"],
        ["train_1", "Who spoke?", "Holm", "17", "3", "Holm spoke.", "Much before. Holm spoke."],
    )  # fmt: skip
    assert list(read_examples(path)) == [QAExample("17#3", "", "Holm spoke.", "Who spoke?", ("Holm",))]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (["1", "Text.", "Q?", "", ""], "text, question and answers must not be empty"),
        (["1", "Text.", "Q?", "a\\", ""], "text, question and answers must not be empty"),
        (["1", "Text.", "Q?"], "the row has not as many cells as the header"),
        (["1", "Text.", "Q?", "a", "", "more"], "the row has not as many cells as the header"),
    ],
)
def test_malformed_csv_row_is_named_by_its_first_line(tmp_path: Path, row: list[str], complaint: str) -> None:
    good = ["0", "Two\nlines.", "Q?", "a", ""]
    path = write_csv(tmp_path / "streaming.csv", STREAMING, good, row)
    rows = read_examples(path)
    next(rows)
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value) == f"{path}:4: {complaint}"


def test_csv_without_a_column_or_quote_is_one_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "some.csv", ["text", "question"], ["a", "b"])
    with pytest.raises(DataError, match=r"some\.csv:1: column 'answers' is missing"):
        list(read_examples(path))
    (tmp_path / "open.csv").write_text('text,question,answers\n"a,b,c\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"open\.csv:2: not a row of CSV"):
        list(read_examples(tmp_path / "open.csv"))


def test_format_is_picked_by_name_or_said(tmp_path: Path) -> None:
    row = {"doc_id": "d", "title": "", "text": "It rained.", "question": "What?", "answers": ["rain"]}
    for name in ("a.jsonl", "b.data"):
        (tmp_path / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    read = [*read_examples(tmp_path / "a.jsonl"), *read_examples(tmp_path / "b.data", "jsonl")]
    assert [one.doc_id for one in read] == ["d", "d"]
    with pytest.raises(DataError, match="its name does not tell its format"):
        read_examples(tmp_path / "b.data")
    with pytest.raises(DataError, match="format 'xml' is not known"):
        read_examples(tmp_path / "a.jsonl", "xml")


def test_hub_set_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match="pip install datasets"):
        read_examples("hf:squad:validation")


def test_hub_rows_are_read_by_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client is replaced: what is tested is what becomes of its rows."""
    asked: list[Any] = []
    rows = [
        {
            "id": "1",
            "title": "New_Bridge",
            "context": "In Varde.",
            "question": "Where?",
            "answers": {"text": ["Varde"]},
        },
        {"id": "2", "title": "", "context": "In Varde.", "question": "Who?", "answers": {"text": []}},
        {"id": "3", "context": "59 came."},
    ]

    def load_dataset(path: str, config: str | None, split: str) -> list[Any]:
        asked.append((path, config, split))
        return rows

    client = types.ModuleType("datasets")
    client.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", client)
    read = read_examples("hf:owner/set@plain:train")
    one = next(read)
    assert (one.title, one.text, one.question, one.answers) == ("New Bridge", "In Varde.", "Where?", ("Varde",))
    with pytest.raises(DataError, match=r"hf:owner/set@plain:train: entry 3: no context, question and answers"):
        next(read)
    assert asked == [("owner/set", "plain", "train")]
    with pytest.raises(DataError, match="the split is missing"):
        read_examples("hf:squad")
