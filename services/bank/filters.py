"""The SQL filters that say which rows of a bank count: current for the writer, visible for a reader."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from services.bank.document_filter import DocumentFilter
from services.bank.schema import GUARD_CHUNK

__all__ = [
    "CURRENT",
    "changed_after",
    "ended_before",
    "ingested_after",
    "matching",
    "of_documents",
    "quoted",
    "visible",
]

CURRENT = f"superseded_at IS NULL AND (deleted_at IS NULL OR chunk_no = {GUARD_CHUNK})"
"""The one newest version of every document: its live chunks, or the guard row of its delete."""


def quoted(text: str) -> str:
    """`text` as an SQL string literal; the dialect knows no escape but the doubled quote.

    Raises ValueError for text with lone surrogates (JSON may carry them), which no table can hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not valid Unicode") from None
    return "'" + text.replace("'", "''") + "'"


def of_documents(documents: Iterable[tuple[str, str]]) -> str:
    """Rows of the given (namespace, doc_id) pairs."""
    by_namespace: dict[str, list[str]] = {}
    for namespace, doc_id in documents:
        by_namespace.setdefault(namespace, []).append(quoted(doc_id))
    parts = (f"(namespace = {quoted(name)} AND doc_id IN ({', '.join(ids)}))" for name, ids in by_namespace.items())
    return "(" + " OR ".join(parts) + ")"


def matching(wanted: DocumentFilter) -> str:
    """Rows of the documents that a filter lets through."""
    parts = [
        f"{column} IN ({', '.join(quoted(value) for value in values)})"
        for column, values in (("source", wanted.sources), ("doc_id", wanted.doc_ids))
        if values
    ]
    if wanted.published_after is not None:
        parts.append(f"published_at >= {_literal(wanted.published_after)}")
    if wanted.published_before is not None:
        parts.append(f"published_at < {_literal(wanted.published_before)}")
    parts += [f"array_has_any(labels, [{', '.join(quoted(one) for one in group)}])" for group in wanted.labels]
    return " AND ".join(parts) or "true"


def visible(now: datetime, as_of: datetime | None = None) -> str:
    """Rows that answer a question asked now, or as of a past moment (both aware)."""
    if as_of is None:
        return f"superseded_at IS NULL AND deleted_at IS NULL AND {_open('expires_at', now)}"
    ends = " AND ".join(_open(column, as_of) for column in ("superseded_at", "deleted_at", "expires_at"))
    return f"ingested_at <= {_literal(as_of)} AND {ends}"


def ingested_after(moment: datetime) -> str:
    """Rows that came into the bank after a moment (aware)."""
    return f"ingested_at > {_literal(moment)}"


def changed_after(moment: datetime) -> str:
    """Rows that were added or closed after a moment (aware)."""
    return " OR ".join(f"{column} > {_literal(moment)}" for column in ("ingested_at", "superseded_at", "deleted_at"))


def ended_before(moment: datetime) -> str:
    """Rows that stopped counting before a moment (aware): superseded, deleted or expired."""
    literal = _literal(moment)
    return " OR ".join(f"{column} < {literal}" for column in ("superseded_at", "deleted_at", "expires_at"))


def _open(column: str, moment: datetime) -> str:
    return f"({column} IS NULL OR {column} > {_literal(moment)})"


def _literal(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("as_of must carry a time zone")
    return f"timestamp '{moment.astimezone(UTC).isoformat(timespec='microseconds')}'"
