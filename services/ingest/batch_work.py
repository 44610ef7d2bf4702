"""What happens to a batch of polled records between Kafka and the bank: decode, compress, one commit.

This file does steps 2 to 4 of the order that `services.ingest.consumer` describes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from services.bank.records import Chunk, DocumentDelete, DocumentWrite, Position
from services.errors import RecordError, is_panic
from services.ingest.inbox import PolledRecord
from services.ingest.ports import BankRecord, Compress, Write
from services.ingest.retry import Retry
from services.metrics import Metrics
from services.settings import KafkaSettings
from services.stream.decode import BAD_TIME, decode
from services.stream.record import Document, Tombstone, original_place
from services.stream.shape import RecordShape

__all__ = ["BatchWork", "RecordOutcome"]

_log = logging.getLogger(__name__)
_DETAIL_CHARS = 300
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True, eq=False)
class RecordOutcome:
    """A polled record with what is to be done: a bank record to commit, or the reason why it can't be one."""

    taken: PolledRecord
    outcome: BankRecord | RecordError
    wrong: RecordError | None = None
    """What of the record can't be true, though it is read: a letter says so."""

    @property
    def windows(self) -> int:
        """Windows that the document gave."""
        return len(self.outcome.chunks) if isinstance(self.outcome, DocumentWrite) else 0


class BatchWork:
    """Prepares and stores batches, from several threads at once."""

    def __init__(
        self,
        kafka: KafkaSettings,
        compress: Compress,
        write: Write,
        metrics: Metrics,
        retry: Retry,
    ) -> None:
        self._shape = RecordShape.of(kafka)
        self._compress = compress
        self._write = write
        self._metrics = metrics
        self._retry = retry
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.stale = 0

    def prepare(self, batch: Sequence[PolledRecord]) -> list[RecordOutcome]:
        """Decodes and compresses. Raises ServiceError when the compressor fails for good, never for a bad record."""
        wrong: list[list[RecordError]] = [[] for _ in batch]
        decoded = [
            _guarded(decode, one.record, self._shape, self._count_left_out, said.append)
            for one, said in zip(batch, wrong, strict=True)
        ]
        documents = [one for one in decoded if isinstance(one, Document)]
        chunks = iter(self._compressed(documents))
        return [
            RecordOutcome(
                taken,
                _guarded(self._bank_record, taken, one, next(chunks) if isinstance(one, Document) else ()),
                # a letter that was sent again has said so once
                said[0] if said and original_place(taken.record) is None else None,
            )
            for taken, one, said in zip(batch, decoded, wrong, strict=True)
        ]

    def store(self, batch: Sequence[RecordOutcome]) -> list[tuple[PolledRecord, RecordError]]:
        """Commits to the bank. After it every record of the batch is safe there, but those that it gives back.

        Those are for the dead-letter topic, and so are those in the bank of which something can't be true. Raises
        BankError, with nothing visible, when the bank can't take the batch for good.
        """
        good = [one for one in batch if not isinstance(one.outcome, RecordError)]
        bad = [(one.taken, one.outcome) for one in batch if isinstance(one.outcome, RecordError)]
        bad += self._committed(good)
        told = {id(taken) for taken, _ in bad}
        return bad + [(one.taken, one.wrong) for one in good if one.wrong is not None and id(one.taken) not in told]

    def count_dead_letter(self, taken: PolledRecord, error: RecordError) -> None:
        """Counts a record that the dead-letter topic has acknowledged; one that is in the bank too was counted as that."""
        self._metrics.count("cmt_ingest_dead_letters_total", reason=error.reason)
        if error.reason != BAD_TIME:
            self._count("dead_lettered", 1)

    def _count_left_out(self, field: str) -> None:
        self._metrics.count("cmt_ingest_left_out_fields_total", field=field)

    def _compressed(self, documents: Sequence[Document]) -> list[Sequence[Chunk] | RecordError]:
        if not documents:
            return []
        pairs = [(document.title, document.text) for document in documents]
        return list(self._retry(lambda: self._compress(pairs)))

    @staticmethod
    def _bank_record(
        taken: PolledRecord, decoded: Document | Tombstone | RecordError, chunks: Sequence[Chunk] | RecordError
    ) -> BankRecord | RecordError:
        if isinstance(decoded, RecordError):
            return decoded
        if isinstance(chunks, RecordError):
            return chunks
        if isinstance(decoded, Tombstone):
            return DocumentDelete(decoded.namespace, decoded.id, _position(taken, decoded.seq))
        if not chunks:
            return RecordError("unstorable", "the text gives no window to remember")
        return DocumentWrite(
            namespace=decoded.namespace,
            doc_id=decoded.id,
            title=decoded.title or None,
            url=decoded.url or None,
            source=decoded.source or None,
            published_at=decoded.published_at,
            expires_at=decoded.expires_at,
            position=_position(taken, decoded.seq),
            chunks=tuple(chunks),
            metadata=decoded.metadata,
        )

    def _committed(self, batch: Sequence[RecordOutcome]) -> list[tuple[PolledRecord, RecordError]]:
        """One commit; when a record does not fit the bank, each by itself. Gives those that don't fit."""
        if not batch:
            return []
        records = [one.outcome for one in batch if not isinstance(one.outcome, RecordError)]
        try:
            report = self._retry(lambda: self._write(records))
        except ValueError as error:
            if len(batch) == 1:
                return [(batch[0].taken, _unstorable(error))]
            return [misfit for one in batch for misfit in self._committed([one])]
        deleted = sum(isinstance(one.outcome, DocumentDelete) for one in batch)
        self._count("deleted", deleted)
        self._count("written", len(batch) - deleted)
        with self._lock:
            self.stale += report.stale
        self._measure_freshness(batch, time.time())
        return []

    def _measure_freshness(self, batch: Iterable[RecordOutcome], now_s: float) -> None:
        for one in batch:
            if one.taken.record.timestamp_ms > 0:  # Kafka's -1 means that the record has none
                age_s = max(0.0, now_s - one.taken.record.timestamp_ms / 1000)
                self._metrics.observe("cmt_ingest_freshness_seconds", age_s)
            if isinstance(one.outcome, DocumentWrite) and one.outcome.published_at is not None:
                age_s = max(0.0, now_s - one.outcome.published_at.timestamp())
                self._metrics.observe("cmt_ingest_published_freshness_seconds", age_s)

    def _count(self, outcome: str, records: int) -> None:
        if records:
            with self._lock:
                self.outcomes[outcome] += records
            self._metrics.count("cmt_ingest_records_total", records, outcome=outcome)


def _guarded(work: Callable[..., Done], *arguments: Any) -> Done | RecordError:
    """The work on one record. Whatever it raises is the record's fault: it must not end the stream for the others."""
    try:
        return work(*arguments)
    except RecordError as error:
        return error
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        _log.exception("a record can't be read")
        return RecordError("unreadable", " ".join(f"{type(error).__name__}: {error}".split())[:_DETAIL_CHARS])


def _position(taken: PolledRecord, seq: int) -> Position:
    record = taken.record
    time_of_record = _EPOCH_START + timedelta(milliseconds=max(0, record.timestamp_ms))
    epoch, partition, offset = original_place(record) or (taken.epoch, record.partition, record.offset)
    return Position(epoch, partition, offset, time_of_record, seq)


def _unstorable(error: ValueError) -> RecordError:
    return RecordError("unstorable", " ".join(str(error).split())[:300] or "the document can't be stored")
