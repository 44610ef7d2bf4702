"""What polling knows about each feed, kept in a file, so that a restart sends nothing again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.errors import FeedError

__all__ = ["FeedMemory", "FeedState"]

_MOST_ITEMS = 5000


@dataclass(slots=True)
class FeedMemory:
    """One feed: what its server wants to hear again, when it is due (seconds since 1970), failures in a row, and the
    content of the items that were sent, by id."""

    etag: str = ""
    last_modified: str = ""
    due_s: float = 0.0
    failures: int = 0
    gone: bool = False
    sent: dict[str, str] = field(default_factory=dict)

    def is_new(self, doc_id: str, digest: str) -> bool:
        """Whether an item has not been sent with this content."""
        return self.sent.get(doc_id) != digest

    def note(self, doc_id: str, digest: str) -> None:
        """Notes an item as sent; the oldest are forgotten."""
        self.sent.pop(doc_id, None)
        self.sent[doc_id] = digest
        while len(self.sent) > _MOST_ITEMS:
            self.sent.pop(next(iter(self.sent)))


class FeedState:
    """The feeds' memories in a JSON file, by URL; a broken file is a FeedError that says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path
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
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            return {url: FeedMemory(**feed) for url, feed in stored.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FeedError(f"{self._path}: can't be read: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError):
            raise FeedError(f"{self._path}: is no state of feeds; remove it to send all items again") from None
