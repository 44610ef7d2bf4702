"""Bytes that a row takes in a real bank, by the encoding of its memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.bank_rows import D_KEY, SyntheticNews
from benchmarks.bars import Figure, Report
from cmt_core.config import MemoryConfig
from services.bank.reader import BankReader
from services.bank.records import DocumentWrite
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter

__all__ = ["measure_encodings"]

_ROWS = 512
_MEAN_TOKENS = 165  # of a window of 256, as squad_dev's paragraphs have (decision 0062)
_BITS = MemoryConfig().bits_per_token
_ENCODINGS = {
    "float16 codes, full windows": (MemoryConfig(code_storage="float16"), 256),
    f"{_BITS} bits a token, full windows": (MemoryConfig(), 256),
    f"{_BITS} bits, {_MEAN_TOKENS} tokens a window": (MemoryConfig(), _MEAN_TOKENS),
    f"{_BITS // 2} bits, {_MEAN_TOKENS} tokens a window": (MemoryConfig(bits_per_token=_BITS // 2), _MEAN_TOKENS),
}


def measure_encodings(report: Report) -> dict[str, float]:
    """Bytes a row of each encoding, everything that the table keeps included; indexes are not."""
    sizes = {}
    for name, (config, tokens) in _ENCODINGS.items():
        layout = BankLayout("bench", D_KEY, config.memory_bytes)
        with tempfile.TemporaryDirectory() as folder:
            with BankWriter(f"{folder}/bank", layout, maintain_every=0, ann_rows=0) as writer:
                writer.commit(list(_documents(config, tokens)))
            stats = BankReader(f"{folder}/bank", layout).stats()
        sizes[name] = stats.bytes / stats.rows
        report.add(Figure(f"bytes a row: {name}", sizes[name], "bytes"))
    return sizes


def _documents(config: MemoryConfig, tokens: int) -> Iterator[DocumentWrite]:
    """Random codes for so many tokens, and the zeros that fill the window."""
    for document in SyntheticNews(_ROWS, 2 + tokens * config.token_bytes).documents(list(range(_ROWS))):
        (chunk,) = document.chunks
        yield replace(document, chunks=(replace(chunk, memory=chunk.memory.ljust(config.memory_bytes, b"\0")),))
