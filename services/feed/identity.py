"""Tells the items of a feed apart where their ids do not, and says which are the same."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from services.stream.record import Document

__all__ = ["MAX_ID_CHARS", "Entry", "digest", "told_apart"]

MAX_ID_CHARS = 1024  # as in document.v1.schema.json


@dataclass(frozen=True, slots=True)
class Entry:
    """An item as its feed has it: guid and link as they are written there, its document, which gets its id from
    `told_apart`, and when this version of it was made."""

    guid: str
    link: str
    document: Document
    updated: datetime | None = None


def told_apart(entries: Sequence[Entry], shared: set[str]) -> list[Entry]:
    """The entries of a feed, their documents with ids of their own, in its order; items that are the same are one entry.

    An item is known by its guid, else its link, else a hash of its title and time. Where several items share that
    ("N/A" as guid, the address of a status page as link), link, title, time and text tell them apart, as many of these as
    it takes. `shared` holds what was seen to be shared, also by earlier looks at the feed, and grows: what told items apart
    once goes on to, when one of them is left.

    The same are items that are equal in all of these, of which the first stays, and versions, of which the newest does:
    guid, link and title equal and the times of update different.
    """
    ways = {way[-1]: way for way in map(_ways, entries)}
    first = {way[-1]: entry for way, entry in zip(map(_ways, reversed(entries)), reversed(entries), strict=True)}
    kept = _newest_versions({key: first[key] for key in ways})
    while True:
        ids = {key: next((one for one in ways[key] if one not in shared), key) for key in kept}
        clashing = {one for one, count in Counter(ids.values()).items() if count > 1}
        if not clashing:
            return [replace(kept[key], document=replace(kept[key].document, id=one)) for key, one in ids.items()]
        shared.update(clashing)


def digest(*parts: object) -> str:
    """A short hash that tells different parts apart."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _ways(entry: Entry) -> list[str]:
    """What an item may be known by, the last being all there is."""
    document = entry.document
    given = entry.guid or entry.link
    first = given or digest(f"{document.title}\n{document.published_at or document.text}")
    if len(first) > MAX_ID_CHARS:
        first = digest(first)
    facts = (given, entry.link, document.title, document.published_at, document.text)
    return [first, *(digest("told apart", *facts[:count]) for count in range(2, len(facts) + 1))]


def _newest_versions(entries: dict[str, Entry]) -> dict[str, Entry]:
    newest: dict[tuple[str, str, str], datetime] = {}
    for entry in entries.values():
        if entry.updated is not None:
            version_of = _version_of(entry)
            newest[version_of] = max(entry.updated, newest.get(version_of, entry.updated))

    def stays(entry: Entry) -> bool:
        is_version = entry.guid and entry.document.title and entry.updated is not None
        return not is_version or entry.updated == newest[_version_of(entry)]

    return {key: entry for key, entry in entries.items() if stays(entry)}


def _version_of(entry: Entry) -> tuple[str, str, str]:
    return entry.guid, entry.link, entry.document.title
