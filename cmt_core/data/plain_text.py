"""Reads plain text for training before the questions: text files, a folder of them, or JSONL with a `text` field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from cmt_core.errors import DataError, unreadable

__all__ = ["read_texts"]


def read_texts(path: Path) -> Iterator[str]:
    """Yields documents: each .txt file of a folder, one .txt file, or each row of a .jsonl file (.gz or not).

    Raises DataError that names the file, and the line of a malformed row.
    """
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise DataError(f"{path} has no .txt files")
        for file in files:
            yield from read_texts(file)
        return
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise unreadable(path, error) from None
    if ".jsonl" in path.suffixes:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield _row(line, f"{path}:{number}")
    else:
        yield text


def _row(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{where}: not a JSON object with a text") from None
    if not isinstance(text, str):
        raise DataError(f"{where}: text is no string")
    return text
