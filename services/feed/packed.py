"""Unpacks what was compressed before it was put on a server or disk, whatever its name and headers say."""

from __future__ import annotations

import zlib

from services.errors import FeedError

__all__ = ["unpacked"]

_GZIP = b"\x1f\x8b"
_LAYERS = 2  # a .gz file that the server compressed again
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def unpacked(data: bytes, max_bytes: int, name: str) -> bytes:
    """The bytes, decompressed where they are gzip or zlib data.

    Raises FeedError, with `name`, when they are broken or grow beyond `max_bytes`.
    """
    for _ in range(_LAYERS):
        if not _is_packed(data):
            return data
        try:
            data = _decompressed(data, max_bytes)
        except zlib.error as error:
            raise FeedError(f"{name}: broken gzip data ({error})") from None
        if len(data) > max_bytes:
            raise FeedError(f"{name}: more than {max_bytes} bytes")
    return data


def _is_packed(data: bytes) -> bool:
    zlib_header = len(data) > 2 and data[0] == 0x78 and int.from_bytes(data[:2], "big") % 31 == 0
    return data.startswith(_GZIP) or (zlib_header and not data[:64].isascii())


def _decompressed(data: bytes, max_bytes: int) -> bytes:
    """All members of the data one after the other, cut off soon after `max_bytes`."""
    body = bytearray()
    while data and len(body) <= max_bytes:
        member = zlib.decompressobj(_GZIP_OR_ZLIB)
        body += member.decompress(data, max_bytes + 1 - len(body))
        if not member.eof and len(body) <= max_bytes:
            raise zlib.error("it ends too early")
        data = member.unused_data if member.unused_data.startswith(_GZIP) else b""  # else padding
    return bytes(body)
