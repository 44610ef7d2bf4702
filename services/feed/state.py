"""What polling knows about each feed, kept in a file, so that a restart sends nothing again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from services.errors import FeedError
from services.feed.download import Validators
from services.file_lock import FileLock

__all__ = ["FeedMemory", "FeedState", "SentItem", "one_poller"]

_MOST_OLD_ITEMS = 5000
_MOST_SHARED_IDS = 5000


@dataclass(slots=True)
class SentItem:
    """An item that was sent: its document's id, and hashes of its content, with its time, and with its place on the web
    (empty for an item with a guid), by which it is known again when its feed gives it another id."""

    doc: str
    content: str
    dated: str
    placed: str = ""


@dataclass(slots=True)
class FeedMemory:
    """One feed: when it is due (seconds since 1970), failures in a row, what its server wants to hear again; and for the
    topic that its items went to, which these were, by their id in the feed, and the ids that told no items apart."""

    due_s: float = 0.0
    failures: int = 0
    gone: bool = False
    etag: str = ""
    last_modified: str = ""
    topic: str = ""
    items: dict[str, SentItem] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)

    @property
    def validators(self) -> Validators:
        """What the server wants to be told."""
        return Validators(self.etag, self.last_modified)

    @validators.setter
    def validators(self, validators: Validators) -> None:
        self.etag, self.last_modified = validators.etag, validators.last_modified

    def turn_to(self, topic: str) -> None:
        """Forgets what went to another topic: this one has none of it."""
        if self.topic != topic:
            self.topic, self.items, self.shared, self.validators = topic, {}, [], Validators()
            if not self.failures:
                self.due_s = 0.0

    def note(self, items: dict[str, SentItem], current: set[str], shared: set[str]) -> None:
        """Notes items as sent; all that the feed has now (`current`) are kept, and so many older ones."""
        for one, item in items.items():
            self.items.pop(one, None)
            self.items[one] = item
        old = [one for one in self.items if one not in current]
        for one in old[: max(0, len(old) - _MOST_OLD_ITEMS)]:
            del self.items[one]
        known = set(self.shared)
        self.shared = [*self.shared, *sorted(shared - known)][-_MOST_SHARED_IDS:]


_Feeds = TypeAdapter(dict[str, FeedMemory])


class FeedState:
    """The feeds' memories in a JSON file, by URL; a broken file is a FeedError that says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._feeds = self._read()

    def feed(self, url: str) -> FeedMemory:
        """What is known about a feed."""
        return self._feeds.setdefault(url, FeedMemory())

    def save(self) -> None:
        """Writes the file: completely, or not at all."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
            new.write_text(json.dumps({url: asdict(feed) for url, feed in self._feeds.items()}), encoding="utf-8")
            new.replace(self._path)
        except OSError as error:
            raise FeedError(f"{self._path}: can't be written: {error.strerror}; set feed.state_file") from None

    def _read(self) -> dict[str, FeedMemory]:
        try:
            return _Feeds.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FeedError(f"{self._path}: can't be read: {error.strerror}; set feed.state_file") from None
        except ValidationError:
            raise FeedError(f"{self._path}: is no state of feeds; remove it to send all items again") from None


@contextmanager
def one_poller(path: Path) -> Iterator[None]:
    """Keeps a second poller away from a state file: each would forget what the other sends. Raises FeedError."""
    path = path.absolute()
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = lock.acquire()
    except OSError as error:
        raise FeedError(f"{path}: can't be written: {error.strerror}; set feed.state_file") from None
    if not taken:
        raise FeedError(
            f"{path}: another `cmt feed poll`{lock.holder()} uses it: give that one all feeds, or set feed.state_file"
        )
    try:
        yield
    finally:
        lock.release()
