"""A bank in a folder with the sample news as ingest would have left it, updates and deletions done, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.bank.records import DocumentDelete, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.commands.encoding import chunks_of
from services.feed.fetch import read_all
from services.sample_news import sample_locations
from services.settings import FeedSettings
from services.stream.record import Document, Tombstone

if TYPE_CHECKING:
    from cmt_core.model import CMT

__all__ = ["fill_bank", "sample_items"]

Item = Document | Tombstone


def sample_items() -> list[Item]:
    """The sample news in the order in which they came out, deletions last."""
    items = [one for one in read_all(sample_locations(), FeedSettings()) if isinstance(one, Document | Tombstone)]
    return sorted(items, key=lambda one: _moment(one) or datetime.max.replace(tzinfo=UTC))


def fill_bank(model: CMT, folder: Path, items: Iterable[Item], told: Callable[[int], None] = lambda done: None) -> None:
    """Writes a bank of the model's memories; each record is one commit, as old as its document."""
    last = datetime(2000, 1, 1, tzinfo=UTC)

    def clock() -> datetime:
        return last

    layout = BankLayout(model_id=model.model_id, d_key=model.d_key, memory_bytes=model.memory_bytes)
    with BankWriter(str(folder), layout, clock=clock) as writer:
        for offset, item in enumerate(items):
            last = max(last, _moment(item) or last)
            writer.commit([_record(model, item, offset, last)])
            told(offset + 1)


def _record(model: CMT, item: Item, offset: int, moment: datetime) -> DocumentWrite | DocumentDelete:
    position = Position(epoch=0, partition=0, offset=offset, record_time=moment)
    if isinstance(item, Tombstone):
        return DocumentDelete(item.namespace, item.id, position)
    chunks = tuple(chunks_of(model, model.windows(item.title, item.text)))
    about: dict[str, Any] = {"title": item.title or None, "url": item.url or None, "source": item.source or None}
    return DocumentWrite(
        namespace=item.namespace,
        doc_id=item.id,
        published_at=item.published_at,
        expires_at=item.expires_at,
        position=position,
        chunks=chunks,
        metadata=item.metadata,
        **about,
    )


def _moment(item: Item) -> datetime | None:
    return item.published_at if isinstance(item, Document) else None
