"""The text of tokens, with no half of a character in it: tokens can be bytes, and an answer can end between two of them.

A tokenizer writes U+FFFD for bytes that make no character, which can't be told from a U+FFFD that the LLM copied from a text.
So where one comes up, the tokens' bytes are read here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["Decoder"]

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd"


class Decoder:
    """Decodes with a tokenizer of transformers that is of the `tokenizers` library."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._bytes = _bytes_of_letters() if "ByteLevel" in str(self._backend.decoder) else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens without the special ones; bytes that are no whole character are left out."""
        text = self._decoded(ids)
        if _REPLACEMENT not in text:
            return text
        return self._decoded(list(self._whole(ids))) if self._bytes is None else self._of_bytes(ids, self._bytes)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _of_bytes(self, ids: Sequence[int], letters: dict[str, int]) -> str:
        """Of a byte-level vocabulary, in which every letter of a token stands for a byte."""
        added = self._backend.get_added_tokens_decoder()
        names = (self._backend.id_to_token(id) for id in ids if id not in added or not added[id].special)
        parts = (
            bytes(map(letters.__getitem__, name)) if letters.keys() >= set(name) else name.encode() for name in names
        )
        return b"".join(parts).decode(errors="ignore")

    def _whole(self, ids: Sequence[int]) -> Iterator[int]:
        """The tokens without those `<0xE6>` that make no character with their neighbours."""
        names = [(id, _BYTE.fullmatch(self._backend.id_to_token(id) or "")) for id in ids]
        for is_byte, run in itertools.groupby(names, key=lambda pair: pair[1] is not None):
            if not is_byte:
                yield from (id for id, _ in run)
                continue
            found = bytes(int(byte[1], 16) for _, byte in run if byte)
            yield from (self._backend.token_to_id(f"<0x{byte:02X}>") for byte in found.decode(errors="ignore").encode())


def _bytes_of_letters() -> dict[str, int]:
    """The letters by which byte-level vocabularies write bytes: printable ones of Latin-1 stand for themselves, the others
    are numbered from U+0100 (Radford et al. 2019).
    """
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    others = (byte for byte in range(0x100) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
