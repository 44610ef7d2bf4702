"""Synthetic documents for the bank's benchmark: keys in events of topics, Zipf's words, payloads that do not compress."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from services.bank.records import Chunk, DocumentWrite, Position

__all__ = ["D_KEY", "SyntheticNews"]

D_KEY = 384
_WORDS = 30_000
_TEXT_WORDS = 60
_TOPICS = 100
_CLUSTER_ROWS = 20  # documents about one event of a topic
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class SyntheticNews:
    """Documents d0, d1, ... of one window each; `rows` sets how many events they are about."""

    def __init__(self, rows: int, payload_bytes: int, seed: int = 0) -> None:
        self._dice = np.random.default_rng(seed)
        self._payload_bytes = payload_bytes
        topics = _unit(self._dice.standard_normal((_TOPICS, D_KEY), dtype=np.float32))
        events = max(_TOPICS, rows // _CLUSTER_ROWS)
        own = topics[self._dice.integers(0, _TOPICS, events)]
        self._centres = _unit(own + self._dice.standard_normal((events, D_KEY), dtype=np.float32) / np.sqrt(D_KEY))
        self._words = np.array([f"{chr(97 + n % 26)}{n:x}" for n in range(_WORDS)])
        weights = 1 / np.arange(1, _WORDS + 1)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._offset = 0

    def documents(self, numbers: list[int]) -> list[DocumentWrite]:
        """New versions of documents, each newer than all before."""
        keys, texts = self.keys(len(numbers)), list(self.texts(len(numbers)))
        payload = self._dice.bytes(len(numbers) * self._payload_bytes)
        size = self._payload_bytes
        made = []
        for i, number in enumerate(numbers):
            self._offset += 1
            chunk = Chunk(texts[i], keys[i], payload[i * size : (i + 1) * size], 90)
            position = Position(0, 0, self._offset, _EPOCH)
            made.append(
                DocumentWrite("default", f"d{number}", texts[i][:40], None, "bench", _EPOCH, None, position, (chunk,))
            )
        return made

    def keys(self, count: int) -> np.ndarray:
        """Unit keys (count, d_key) around the events' centres, at a cosine of 0.7 to them on average."""
        centres = self._centres[self._dice.integers(0, len(self._centres), count)]
        noise = self._dice.standard_normal((count, D_KEY), dtype=np.float32) / np.sqrt(D_KEY)
        return _unit(centres + noise)

    def texts(self, count: int, words: int = _TEXT_WORDS) -> Iterator[str]:
        """Texts of so many words."""
        drawn = np.searchsorted(self._cumulative, self._dice.random((count, words)))
        return (" ".join(row) for row in self._words[np.minimum(drawn, _WORDS - 1)])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
