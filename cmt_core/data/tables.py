"""Reads StreamingQA and ArchivalQA as CSV with their documents, as CaMeLS and MAC (arXiv 2305.15076, 2403.04317) share them.

StreamingQA (Liska et al. 2022): columns text, question, answers; several answers are separated by a backslash.
ArchivalQA (Wang et al. 2022): columns question, answer, ans_paragraph, and doc_id, para_num of the paragraph.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cmt_core.data.qa import QAExample
from cmt_core.errors import DataError, unreadable

__all__ = ["header", "read_archivalqa", "read_streamingqa"]

_MAX_FIELD_CHARS = 16 * 2**20  # an article in one cell is longer than the csv module's own limit


def read_streamingqa(path: Path) -> Iterator[QAExample]:
    """Yields one row a question; equal texts are one document. Raises DataError that names file and line."""
    for where, row in _rows(path, ("text", "question", "answers")):
        answers = [part.strip() for part in row["answers"].split("\\")]
        name = hashlib.sha256(row["text"].encode()).hexdigest()[:16]
        yield _example(where, name, row.get("title") or "", row["text"], row["question"], answers)


def read_archivalqa(path: Path) -> Iterator[QAExample]:
    """Yields one row a question; a paragraph is a document. Raises DataError that names file and line."""
    for where, row in _rows(path, ("question", "answer", "ans_paragraph", "doc_id", "para_num")):
        name = f"{row['doc_id']}#{row['para_num']}"
        yield _example(
            where, name, row.get("title") or "", row["ans_paragraph"], row["question"], [row["answer"].strip()]
        )


def header(path: Path) -> Sequence[str]:
    """The column names of a CSV file."""
    with _table(path) as reader:
        return reader.fieldnames or ()


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    with _table(path) as reader:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}:1: column {missing[0]!r} is missing")
        while True:
            first = reader.line_num + 1  # a cell may hold line breaks: a row is named by its first line
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}:{first}: not a row of CSV ({error})") from None
            if None in row or any(value is None for value in row.values()):
                raise DataError(f"{path}:{first}: the row has not as many cells as the header")
            yield f"{path}:{first}", row


@contextmanager
def _table(path: Path) -> Iterator[csv.DictReader[str]]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    try:
        with _open(path) as file:
            yield csv.DictReader(file, strict=True)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise unreadable(path, error) from None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _example(where: str, name: str, title: str, text: str, question: str, answers: Sequence[str]) -> QAExample:
    if not (text.strip() and question.strip() and answers and all(answers)):
        raise DataError(f"{where}: text, question and answers must not be empty")
    return QAExample(name, title, text, question.strip(), tuple(dict.fromkeys(answers)))
