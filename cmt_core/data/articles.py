"""Reads articles without questions: gzip or plain JSONL, one object with id, title and text a line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from cmt_core.errors import DataError, unreadable

__all__ = ["read_articles"]


def read_articles(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (id, title, text) of every line. Raises DataError that names file and line."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _article(line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise unreadable(path, error) from None


def _article(line: str, where: str) -> tuple[str, str, str]:
    try:
        row = json.loads(line)
        found = (row["id"], row.get("title") or "", row["text"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not an article with id and text ({type(error).__name__}: {error})") from None
    if not all(isinstance(part, str) for part in found):
        raise DataError(f"{where}: id, title and text must be strings")
    return found
