"""Decompresses record batches, up to a limit: a megabyte of zeros, packed twice over, must not fill the memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

import lz4.frame
import snappy
import zstandard

__all__ = ["decompressed"]

_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16
_GZIP_OR_ZLIB = 47
_CHUNK_BYTES = 2**20
_VARINT_BYTES = 5


def decompressed(codec: int, data: bytes, limit_bytes: int) -> bytes:
    """The records of a batch whose attributes say `codec` (0 to 4: none, gzip, snappy, lz4, zstd).

    Raises ValueError, with the codec's name, for other codecs, for damaged data, and for more than `limit_bytes`.
    """
    name = _CODECS[codec] if codec < len(_CODECS) else str(codec)
    decompress = _DECOMPRESS.get(name)
    if decompress is None:
        raise ValueError(f"unknown compression codec {name}")
    try:
        found = decompress(data, limit_bytes)
    except Exception as error:  # every library has errors of its own
        raise ValueError(f"the {name} data can't be decompressed ({type(error).__name__}: {error})") from error
    if len(found) > limit_bytes:
        raise ValueError(f"the {name} data have more than {limit_bytes} bytes")
    return found


def _gzip(data: bytes, limit_bytes: int) -> bytes:
    """All members of the stream: some producers write several."""
    found = bytearray()
    while data and len(found) <= limit_bytes:
        member = zlib.decompressobj(_GZIP_OR_ZLIB)
        found += member.decompress(data, limit_bytes + 1 - len(found))
        if not member.eof and len(found) <= limit_bytes:
            raise EOFError("it ends too early")
        data = member.unused_data
    return bytes(found)


def _snappy(data: bytes, limit_bytes: int) -> bytes:
    """One raw block, or the framed blocks of the Java client."""
    if not data.startswith(_XERIAL):
        return _snappy_block(data, limit_bytes)
    found = bytearray()
    at = _XERIAL_HEADER_BYTES
    while at < len(data) and len(found) <= limit_bytes:
        size: int = struct.unpack_from("!I", data, at)[0]
        at += 4
        if at + size > len(data):
            raise EOFError("it ends too early")
        found += _snappy_block(data[at : at + size], limit_bytes - len(found))
        at += size
    return bytes(found)


def _snappy_block(block: bytes, limit_bytes: int) -> bytes:
    """The block says its length in front; it is asked before that much memory is taken."""
    length = sum((byte & 0x7F) << (7 * number) for number, byte in enumerate(_varint(block)))
    if length > limit_bytes:
        raise MemoryError(f"a block of {length} bytes")
    return bytes(snappy.uncompress(block))


def _varint(block: bytes) -> bytes:
    length = next(number for number, byte in enumerate(block[:_VARINT_BYTES], 1) if byte < 0x80)
    return block[:length]


def _lz4(data: bytes, limit_bytes: int) -> bytes:
    found = bytearray()
    while data and len(found) <= limit_bytes:
        frame = lz4.frame.LZ4FrameDecompressor()
        found += frame.decompress(data, limit_bytes + 1 - len(found))
        if not frame.eof and len(found) <= limit_bytes:
            raise EOFError("it ends too early")
        data = frame.unused_data or b""
    return bytes(found)


def _zstd(data: bytes, limit_bytes: int) -> bytes:
    found = bytearray()
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while len(found) <= limit_bytes and (chunk := reader.read(_CHUNK_BYTES)):
            found += chunk
    return bytes(found)


_DECOMPRESS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "none": lambda data, limit_bytes: data,
    "gzip": _gzip,
    "snappy": _snappy,
    "lz4": _lz4,
    "zstd": _zstd,
}
