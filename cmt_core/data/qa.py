"""Reads question-answer sets: gzip or plain JSONL, one question with its document a line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cmt_core.errors import DataError, unreadable

__all__ = ["QAExample", "QuestionedDocument", "by_document", "read_qa"]


@dataclass(frozen=True, slots=True)
class QAExample:
    """One question with its gold answers and the document that holds them; `date` is ISO 8601 where the set has one.

    A question for a free answer has `facts`, which the answer must all contain, each in one of several wordings.
    """

    doc_id: str
    title: str
    text: str
    question: str
    answers: tuple[str, ...]
    source: str = ""
    date: str = ""
    facts: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionedDocument:
    """A document with all its questions: (question, answers) pairs in file order."""

    doc_id: str
    title: str
    text: str
    source: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def read_qa(path: Path) -> Iterator[QAExample]:
    """Yields the rows of a JSONL file (.gz or not) with doc_id, title, text, question, answers.

    Raises DataError that names file and line.
    """
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise unreadable(path, error) from None


def by_document(rows: Iterator[QAExample]) -> list[QuestionedDocument]:
    """Groups rows by document, in order of first appearance."""
    grouped: dict[str, list[QAExample]] = {}
    for row in rows:
        grouped.setdefault(row.doc_id, []).append(row)
    return [
        QuestionedDocument(
            doc_id, rows_[0].title, rows_[0].text, rows_[0].source, tuple((r.question, r.answers) for r in rows_)
        )
        for doc_id, rows_ in grouped.items()
    ]


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _row(line: str, where: str) -> QAExample:
    try:
        row: dict[str, Any] = json.loads(line)
        if not isinstance(row["answers"], list):
            raise TypeError("answers is no list")
        answers = tuple(str(answer) for answer in row["answers"])
        example = QAExample(
            str(row["doc_id"]),
            str(row.get("title") or ""),
            str(row["text"]),
            str(row["question"]),
            answers,
            str(row.get("source") or ""),
            str(row.get("date") or ""),
        )
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"{where}: not a JSON object of a question ({error})") from None
    except KeyError as error:
        raise DataError(f"{where}: field {error} is missing") from None
    if not example.answers or not example.text.strip() or not example.question.strip():
        raise DataError(f"{where}: text, question and answers must not be empty")
    return example
