"""Reads files of document records: one JSON object a line, in the shape of the Kafka value, plain or .gz."""

from __future__ import annotations

import codecs
import gzip
import logging
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from services.errors import FeedError, RecordError
from services.feed.items import Item
from services.stream.decode import decode
from services.stream.record import RawRecord
from services.stream.shape import RecordShape

__all__ = ["parse_jsonl"]

_log = logging.getLogger(__name__)
_MAX_LINE_BYTES = 16 * 2**20


def parse_jsonl(path: Path, max_line_bytes: int = _MAX_LINE_BYTES) -> Iterator[Item]:
    """The documents of a file in its order; `{"id": ..., "deleted": true}` (and a namespace) is a Tombstone.

    `next` raises FeedError, with the line's number, for a line that is no document, and may be called again: it goes
    on with the next line. A file that can't be read, or breaks off within its compressed data, ends there.
    """
    return _Lines(path, max_line_bytes)


class _Lines(Iterator[Item]):
    def __init__(self, path: Path, max_line_bytes: int) -> None:
        self._path = path
        self._limit = max_line_bytes
        self._shape = RecordShape(deleted_if={"deleted": ("true",)}, max_bytes=max_line_bytes)
        self._number = 0
        self._file: BinaryIO | None = None
        self._ended = False

    def __next__(self) -> Item:
        while line := self._line():
            if line.removeprefix(BOM_UTF8).strip():
                return self._item(line)
        raise StopIteration

    def _line(self) -> bytes:
        """The next line, empty at the end."""
        if self._ended:
            return b""
        try:
            file = self._file = self._file or self._open()
            line = file.readline(self._limit + 1)
            self._number += 1
            too_long = len(line) > self._limit
            if self._number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            while len(line) > self._limit and not line.endswith(b"\n"):
                line = file.readline(self._limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            self._end()
            raise FeedError(f"{self._path}: can't be read: {' '.join(str(error).split())}") from None
        if too_long:
            raise FeedError(f"{self._path}:{self._number}: the line has more than {self._limit} bytes")
        if not line:
            self._end()
        return line

    def _open(self) -> BinaryIO:
        compressed = self._path.suffix.lower() == ".gz"
        return cast(BinaryIO, gzip.open(self._path) if compressed else self._path.open("rb"))

    def _end(self) -> None:
        self._ended = True
        if self._file is not None:
            self._file.close()

    def _item(self, line: bytes) -> Item:
        place = f"{self._path}:{self._number}"
        try:
            return decode(
                RawRecord("", 0, 0, 0, None, line),
                self._shape,
                lambda name: _log.warning("%s: %s can't be understood and is left out", place, name),
            )
        except RecordError as error:
            raise FeedError(f"{place}: {error}") from None
