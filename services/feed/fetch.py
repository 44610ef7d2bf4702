"""Finds feeds: a file, a folder of files, or a URL fetched within limits of time and size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from services.errors import FeedError
from services.feed.download import download, without_secrets
from services.feed.items import FeedQueue, Item
from services.feed.jsonl import parse_jsonl
from services.feed.packed import unpacked
from services.feed.parse import parse_feed
from services.settings import FeedSettings

__all__ = ["read_all", "read_any"]

_JSONL = (".jsonl", ".jsonl.gz")
_FEEDS = (".xml", ".rss", ".atom", ".rdf", ".json")
_SUFFIXES = (*_FEEDS, *(f"{one}.gz" for one in _FEEDS), *_JSONL)


def read_any(location: str, settings: FeedSettings) -> FeedQueue:
    """The items of a path, of all feed files in a folder (by name), or of a URL.

    `next` raises FeedError for what can't be read and goes on behind it when called again.
    """
    return read_all([location], settings)


def read_all(locations: Iterable[str], settings: FeedSettings) -> FeedQueue:
    """The items of several locations, one after the other; like `read_any`."""
    return FeedQueue(_openers(locations, settings))


def _openers(locations: Iterable[str], settings: FeedSettings) -> Iterator[Callable[[], Iterator[Item]]]:
    for location in locations:
        if "://" in location:
            yield partial(_open_url, location, settings)
        elif not Path(location).is_dir():
            yield partial(_open_file, Path(location), settings)
        else:
            yield from _folder(Path(location), settings)


def _folder(folder: Path, settings: FeedSettings) -> Iterator[Callable[[], Iterator[Item]]]:
    """Openers of a folder's feed files; one that fails when there is none, since that is never what was meant."""
    try:
        found = sorted(path for path in folder.iterdir() if _is_feed_file(path))
    except OSError as error:
        yield partial(_fail, f"{folder}: can't be read: {error.strerror}")
        return
    if not found:
        yield partial(_fail, f"{folder}: holds no feed files ({', '.join(_SUFFIXES)})")
    for path in found:
        yield partial(_open_file, path, settings)


def _is_feed_file(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _fail(message: str) -> Iterator[Item]:
    raise FeedError(message)


def _open_url(url: str, settings: FeedSettings) -> Iterator[Item]:
    got = download(url, settings)
    return parse_feed(got.body or b"", without_secrets(url), url=got.url, content_type=got.content_type)


def _open_file(path: Path, settings: FeedSettings) -> Iterator[Item]:
    if path.name.lower().endswith(_JSONL):
        return parse_jsonl(path)
    try:
        with path.open("rb") as file:
            data = file.read(settings.max_bytes + 1)
    except OSError as error:
        raise FeedError(f"{path}: can't be read: {error.strerror}") from None
    if len(data) > settings.max_bytes:
        raise FeedError(f"{path}: more than {settings.max_bytes} bytes")
    return parse_feed(unpacked(data, settings.max_bytes, str(path)), str(path))
