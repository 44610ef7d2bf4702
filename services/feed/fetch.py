"""Finds feeds: a file, a folder of files, or a URL fetched within limits of time and size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import urlsplit

import httpx

from services.errors import FeedError
from services.feed.items import FeedQueue, Item
from services.feed.jsonl import parse_jsonl
from services.feed.parse import parse_feed
from services.settings import FeedSettings

__all__ = ["fetch", "read_all", "read_any"]

_MAX_REDIRECTS = 5
_JSONL = (".jsonl", ".jsonl.gz")
_SUFFIXES = (".xml", ".rss", ".atom", ".rdf", ".json", *_JSONL)


def fetch(url: str, settings: FeedSettings) -> bytes:
    """The body of an http or https address, at most `max_bytes` after decompression, within `timeout_s` seconds in all.

    Every failure is a FeedError of one line without the password that the address may hold.
    """
    shown = _without_secrets(url)
    if url.partition("://")[0].lower() not in ("http", "https"):
        raise FeedError(f"{shown}: only http and https addresses are fetched")
    # httpx limits every single read, so a server that drips header lines could hold us for hours: the deadline for the
    # whole is kept here, and the thread of such a server is left to its fate.
    answer: SimpleQueue[bytes | FeedError] = SimpleQueue()
    Thread(target=lambda: answer.put(_attempt(url, shown, settings)), daemon=True, name="cmt-feed-fetch").start()
    try:
        result = answer.get(timeout=settings.timeout_s)
    except Empty:
        raise FeedError(_too_slow(shown, settings)) from None
    if isinstance(result, FeedError):
        raise result
    return result


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
    return parse_feed(fetch(url, settings), _without_secrets(url))


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
    return parse_feed(data, str(path))


def _attempt(url: str, shown: str, settings: FeedSettings) -> bytes | FeedError:
    try:
        return _download(url, shown, settings)
    except FeedError as error:
        return error
    except httpx.TooManyRedirects:
        return FeedError(f"{shown}: more than {_MAX_REDIRECTS} redirects")
    except httpx.TimeoutException:
        return FeedError(_too_slow(shown, settings))
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        return FeedError(f"{shown}: can't be fetched: {text}")


def _download(url: str, shown: str, settings: FeedSettings) -> bytes:
    deadline = time.monotonic() + settings.timeout_s
    body = bytearray()
    with (
        httpx.Client(follow_redirects=True, max_redirects=_MAX_REDIRECTS, timeout=settings.timeout_s) as client,
        client.stream("GET", url, headers={"User-Agent": settings.user_agent}) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise FeedError(f"{shown}: the server answers {response.status_code} {response.reason_phrase}".rstrip())
        for part in response.iter_bytes():  # a chunk size would gather parts past the deadline
            body += part
            if len(body) > settings.max_bytes:
                raise FeedError(f"{shown}: more than {settings.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("")
    return bytes(body)


def _too_slow(shown: str, settings: FeedSettings) -> str:
    return f"{shown}: no complete answer within {settings.timeout_s:g} s"


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    except ValueError:
        return "the given address"
