"""Reads sets of the Hugging Face hub in SQuAD's columns (context, question, answers), where `datasets` is installed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from cmt_core.data.qa import QAExample
from cmt_core.errors import DataError, MissingPackageError, one_line

__all__ = ["read_hub"]


def read_hub(name: str) -> Iterator[QAExample]:
    """Rows of `NAME:SPLIT` or `OWNER/NAME:SPLIT`, with `@CONFIG` behind the name where it has configurations.

    Questions without an answer are left out. Raises MissingPackageError without `datasets`, DataError for a set that can't be
    loaded, and with the number (from 1) of a malformed entry.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingPackageError(
            f"the set {name} needs Hugging Face datasets, which is not installed: pip install datasets"
        ) from None
    dataset, colon, split = name.rpartition(":")
    if not colon or not dataset or not split:
        raise DataError(f"hf:{name}: the split is missing, as in hf:squad:validation")
    path, _, config = dataset.partition("@")
    try:
        rows = load_dataset(path, config or None, split=split)
    except Exception as error:  # noqa: BLE001 the hub's client has no common base for what can fail
        raise DataError(f"hf:{name} can't be loaded: {one_line(error)}") from None
    return _examples(rows, f"hf:{name}")


def _examples(rows: Any, name: str) -> Iterator[QAExample]:
    for number, row in enumerate(rows, 1):
        try:
            text, question = str(row["context"]), str(row["question"])
            answers = row["answers"]["text"] if isinstance(row["answers"], dict) else row["answers"]
            title = str(row.get("title") or "").replace("_", " ")
            given = tuple(dict.fromkeys(str(answer) for answer in answers))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{name}: entry {number}: no context, question and answers ({error})") from None
        if given:
            doc_id = hashlib.sha256(text.encode()).hexdigest()[:16]
            yield QAExample(doc_id, title, text, question, given)
