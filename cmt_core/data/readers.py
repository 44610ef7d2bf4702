"""Question-answer sets in the formats in which they are published, all as QAExample rows.

`read_examples` picks the reader by format, `auto` by what the file looks like. A malformed row is a DataError with its line
(JSONL, CSV) or entry (JSON, Hugging Face) number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cmt_core.data.hub import read_hub
from cmt_core.data.qa import QAExample, read_qa
from cmt_core.data.squad import read_squad
from cmt_core.data.tables import header, read_archivalqa, read_streamingqa
from cmt_core.errors import DataError

__all__ = ["FORMATS", "read_examples"]

FORMATS: dict[str, Callable[[Path], Iterator[QAExample]]] = {
    "jsonl": read_qa,
    "squad": read_squad,
    "streamingqa": read_streamingqa,
    "archivalqa": read_archivalqa,
}
_HUB = "hf:"


def read_examples(dataset: str | Path, format: str = "auto") -> Iterator[QAExample]:
    """Rows of a file, or of `hf:NAME[@CONFIG]:SPLIT`, a set that Hugging Face `datasets` loads in SQuAD's columns.

    Formats: jsonl (ours), squad (v1.1 and v2 JSON), streamingqa and archivalqa (CSV), auto. Raises DataError for an unknown
    format or a malformed row, MissingPackageError where `datasets` is needed and not installed.
    """
    if str(dataset).startswith(_HUB):
        return read_hub(str(dataset).removeprefix(_HUB))
    path = Path(dataset)
    name = _guessed(path) if format == "auto" else format
    if name not in FORMATS:
        raise DataError(f"format {name!r} is not known; known are {', '.join(FORMATS)}, auto, and hf:NAME:SPLIT")
    return FORMATS[name](path)


def _guessed(path: Path) -> str:
    """The format that a file's name, and for CSV its header, speak for."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    last = suffixes[-1].lower() if suffixes else ""
    if last == ".csv":
        return "archivalqa" if "ans_paragraph" in header(path) else "streamingqa"
    if last in (".jsonl", ".json"):
        return "jsonl" if last == ".jsonl" else "squad"
    raise DataError(f"{path}: its name does not tell its format; say which of {', '.join(FORMATS)} it is")
