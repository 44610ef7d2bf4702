"""What `cmt ingest status` shows: derived from committed offsets, end offsets and the bank, and from nothing that runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.bank.reader import BankReader
from services.errors import BrokerError
from services.settings import KafkaSettings, Settings
from services.stream.broker import running_broker
from services.stream.progress import PartitionProgress, partition_progress

__all__ = ["IngestProgress", "read_progress", "table", "unread"]

_RATE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """Partitions with their lag (records); documents and version of the bank, and the versions of documents that came
    into it per second of the last minute. `bank_version` is 0 when there is no bank yet."""

    topic: str
    group: str
    partitions: list[PartitionProgress]
    lag: int
    oldest_age_s: float | None
    bank: str
    documents: int
    bank_version: int
    documents_per_s: float


def read_progress(settings: Settings) -> IngestProgress:
    """Asks the broker, which is not started, and the bank. Raises BrokerError or BankError."""
    kafka = settings.kafka
    partitions = partition_progress(kafka, running_broker(kafka))
    options = {name: secret.get_secret_value() for name, secret in settings.bank.storage_options.items()}
    reader = BankReader(settings.bank.uri, None, 0.0, options)
    stats = reader.stats()
    recent = reader.versions_since(datetime.now(UTC) - timedelta(seconds=_RATE_WINDOW_S))
    return IngestProgress(
        topic=kafka.topic,
        group=kafka.group_id,
        partitions=partitions,
        lag=sum(one.lag for one in partitions),
        oldest_age_s=max((one.oldest_age_s for one in partitions if one.oldest_age_s is not None), default=None),
        bank=settings.bank.uri,
        documents=stats.documents,
        bank_version=stats.version,
        documents_per_s=round(recent / _RATE_WINDOW_S, 2),
    )


def unread(settings: KafkaSettings, bootstrap: str) -> str:
    """What the embedded broker takes along when it ends, as one line; empty when everything was read, or it is gone."""
    try:
        records = sum(one.lag for one in partition_progress(settings, bootstrap))
    except BrokerError:
        return ""
    if not records:
        return ""
    return (
        f"{records} records were not read, and the embedded broker keeps them in memory only: send them again "
        "(`cmt feed poll` does by itself)"
    )


def table(progress: IngestProgress) -> str:
    """The lines for a terminal."""
    lines = [f"topic {progress.topic}, group {progress.group}", "partition   committed         end     lag  oldest"]
    for one in progress.partitions:
        committed = "-" if one.committed is None else str(one.committed)
        lines.append(f"{one.partition:9} {committed:>11} {one.end:11} {one.lag:7}  {_age(one.oldest_age_s)}")
    lines.append(f"{'all':>9} {'':11} {'':11} {progress.lag:7}  {_age(progress.oldest_age_s)}")
    if progress.bank_version:
        lines.append(
            f"bank {progress.bank}: {progress.documents} documents, version {progress.bank_version}, "
            f"{progress.documents_per_s:g} versions of documents a second in the last minute"
        )
    else:
        lines.append(f"bank {progress.bank}: none yet")
    return "\n".join(lines)


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
