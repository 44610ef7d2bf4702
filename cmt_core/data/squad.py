"""Reads SQuAD JSON, v1.1 and v2 (Rajpurkar et al. 2016, 2018): articles of paragraphs with questions.

v2's unanswerable questions are left out: there is nothing in the document to find.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmt_core.data.qa import QAExample
from cmt_core.errors import DataError, unreadable

__all__ = ["read_squad"]


def read_squad(path: Path) -> Iterator[QAExample]:
    """Yields one row a question; a paragraph is a document, named by its article and number.

    Raises DataError that names the file and the article, paragraph and question (each counted from 1).
    """
    for a, article in enumerate(_articles(path), 1):
        where = f"{path}: article {a}"
        title, paragraphs = str(_field(article, "title", where)), _field(article, "paragraphs", where)
        for p, paragraph in enumerate(paragraphs, 1):
            place = f"{where}, paragraph {p}"
            text, questions = str(_field(paragraph, "context", place)), _field(paragraph, "qas", place)
            for q, asked in enumerate(questions, 1):
                spot = f"{place}, question {q}"
                if isinstance(asked, dict) and asked.get("is_impossible"):
                    continue
                answers = tuple(dict.fromkeys(str(_field(one, "text", spot)) for one in _field(asked, "answers", spot)))
                row = QAExample(
                    f"{title}#{p}", title.replace("_", " "), text, str(_field(asked, "question", spot)), answers
                )
                if not (answers and all(answers) and row.text.strip() and row.question.strip()):
                    raise DataError(f"{spot}: text, question and answers must not be empty")
                yield row


def _articles(path: Path) -> list[Any]:
    try:
        raw = path.read_bytes()
        whole = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise unreadable(path, error) from None
    data = whole.get("data") if isinstance(whole, dict) else None
    if not isinstance(data, list):
        raise DataError(f"{path}: not SQuAD's JSON: it has no list `data`")
    return data


def _field(part: Any, name: str, where: str) -> Any:
    if not isinstance(part, dict) or name not in part:
        raise DataError(f"{where}: field {name!r} is missing")
    if name in ("paragraphs", "qas", "answers") and not isinstance(part[name], list):
        raise DataError(f"{where}: {name} is no list")
    return part[name]
