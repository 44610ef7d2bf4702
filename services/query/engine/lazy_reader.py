"""A bank reader that opens when first used, so that the query service can start before the bank exists."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from services.bank.document_filter import DocumentFilter
from services.bank.records import BankStats, DocumentInfo, DocumentVersion, Hit
from services.errors import BankError, BankUnavailable
from services.query.engine.ports import MemoryReader

__all__ = ["LazyReader"]


class LazyReader:
    """Opens the bank by `open_bank()` and tries again at most every `retry_s`; raises BankError until it succeeds."""

    def __init__(
        self, open_bank: Callable[[], MemoryReader], retry_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_bank = open_bank
        self._retry_s = retry_s
        self._clock = clock
        self._lock = threading.Lock()
        self._reader: MemoryReader | None = None
        self._refused = ""
        self._retry_at = 0.0

    def search(
        self,
        keys: npt.NDArray[np.floating[Any]],
        k: int,
        namespace: str,
        as_of: datetime | None,
        wanted: DocumentFilter | None = None,
        *,
        texts: Sequence[str] = (),
        tokens: Sequence[npt.NDArray[np.float32]] = (),
        every_chunk: bool = False,
    ) -> Sequence[Sequence[Hit]]:
        """The k best hits for each of B keys (B, d_key)."""
        return self._opened().search(
            keys, k, namespace, as_of, wanted, texts=texts, tokens=tokens, every_chunk=every_chunk
        )

    def history(self, doc_id: str, namespace: str) -> Sequence[DocumentVersion]:
        """Every version of a document, newest first."""
        return self._opened().history(doc_id, namespace)

    def latest(self, n: int, namespace: str) -> Sequence[DocumentInfo]:
        """The n documents that came in last, newest first."""
        return self._opened().latest(n, namespace)

    def stats(self) -> BankStats:
        """Size and version now."""
        return self._opened().stats()

    def _opened(self) -> MemoryReader:
        with self._lock:
            if self._reader is None:
                self._reader = self._try_to_open()
            return self._reader

    def _try_to_open(self) -> MemoryReader:
        if self._refused and self._clock() < self._retry_at:
            raise BankUnavailable(self._refused)
        try:
            return self._open_bank()
        except BankError as error:
            self._refused, self._retry_at = str(error), self._clock() + self._retry_s
            raise
