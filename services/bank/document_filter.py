"""Which documents of a namespace a question may be answered from; plain values, importable without Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["DocumentFilter"]


@dataclass(frozen=True, slots=True)
class DocumentFilter:
    """Every condition that is given must hold; times are aware, `published_before` is exclusive.

    `labels` has alternatives: of each group of labels (`services.bank.labels`) a document must have one.
    """

    sources: tuple[str, ...] = ()
    doc_ids: tuple[str, ...] = ()
    published_after: datetime | None = None
    published_before: datetime | None = None
    labels: tuple[tuple[str, ...], ...] = ()
