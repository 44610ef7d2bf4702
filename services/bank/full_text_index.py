"""The full-text index of a bank: what is in its column, and how LanceDB reads it."""

from __future__ import annotations

from typing import Any

from lancedb.index import FTS

from cmt_core.text.words import words
from services.bank.index_state import FULL_TEXT_INDEX

__all__ = ["create_full_text_index", "indexed_words", "words_column"]


def indexed_words(text: str, title: str | None = None) -> str:
    """The words of a question, or of a row's title and text, with spaces between them."""
    return " ".join(words(f"{title}\n{text}" if title else text))


def words_column(table: Any) -> str:
    """Where a table's words are; in banks before version 5, the text itself."""
    return "words" if "words" in table.schema.names else "text"


def create_full_text_index(table: Any) -> None:
    """Makes the full-text index, in the place of one that is there: lower case, English stems, no stop words, no accents."""
    config = FTS(
        base_tokenizer="whitespace",
        with_position=False,
        language="English",
        stem=True,
        remove_stop_words=True,
        ascii_folding=True,
    )
    table.create_index(words_column(table), config=config, name=FULL_TEXT_INDEX, replace=True)
