"""Reads the dead-letter topic: every dead letter once, with what its headers say about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.settings import KafkaSettings
from services.stream.dead_letters import HEADER_PREFIX, NULL_VALUE_HEADER
from services.stream.reading import read_topic
from services.stream.record import PLACE_HEADER, RawRecord, original_place

__all__ = ["DeadLetter", "read_letters"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be read: as it came, why and where it stood, and where it stands in the dead-letter topic.

    `epoch` is None for letters that do not say it; `first_place` is set for one that had been replayed before.
    `headers` are the record's own. `whole` is False where the value is not that of one record: the bytes of a batch that
    can't be decoded, or nothing, because the record was larger than the dead-letter topic takes (`left_out` says so).
    """

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int
    reason: str
    error: str
    topic: str
    partition: int
    offset: int
    epoch: int | None
    first_place: tuple[int, int, int] | None
    time: str
    letter_partition: int
    letter_offset: int
    left_out: str = ""

    @property
    def whole(self) -> bool:
        """Whether the letter holds the record, so that it can be sent again."""
        return not self.left_out and self.reason != "undecodable" and (self.key is not None or self.value is not None)

    @property
    def place_header(self) -> tuple[tuple[str, bytes], ...]:
        """The header that gives a replay the place of the record that it repeats; empty when that is not known."""
        place = self.first_place or (None if self.epoch is None else (self.epoch, self.partition, self.offset))
        return ((PLACE_HEADER, "/".join(map(str, place)).encode()),) if place else ()

    @property
    def place(self) -> str:
        """`PARTITION:OFFSET` in the dead-letter topic, by which a letter is named on the command line."""
        return f"{self.letter_partition}:{self.letter_offset}"


def read_letters(settings: KafkaSettings, bootstrap: str) -> Iterator[DeadLetter]:
    """All dead letters that the topic holds now.

    A crash between a letter and the commit of its offset sends it twice: the second is left out here. Records in the
    topic that are no letters, or can't be decoded themselves, are given with an empty reason. Raises TopicMissing,
    BrokerUnreachable or BrokerError.
    """
    seen: set[tuple[str, int, int, int | None]] = set()
    for record in read_topic(settings, bootstrap, settings.dlq_topic):
        letter = _letter(record)
        origin = (letter.topic, letter.partition, letter.offset, letter.epoch)
        if letter.reason and origin in seen:
            continue
        seen.add(origin)
        yield letter


def _letter(record: RawRecord) -> DeadLetter:
    facts = {
        name.removeprefix(HEADER_PREFIX): value.decode(errors="replace")
        for name, value in record.headers
        if name.startswith(HEADER_PREFIX)
    }
    timestamp_ms = _number(facts.get("timestamp", ""))
    null = any(name == NULL_VALUE_HEADER for name, _ in record.headers)
    epoch = _number(facts.get("epoch", ""))
    return DeadLetter(
        key=record.key,
        value=None if null else record.value,
        headers=tuple(header for header in record.headers if not header[0].startswith(HEADER_PREFIX)),
        timestamp_ms=record.timestamp_ms if timestamp_ms is None else timestamp_ms,
        reason=facts.get("reason", ""),
        error=facts.get("error", "") or record.undecodable,
        topic=facts.get("topic", ""),
        partition=_number(facts.get("partition", "")) or 0,
        offset=_number(facts.get("offset", "")) or 0,
        epoch=epoch,
        first_place=original_place(record),
        time=facts.get("time", ""),
        letter_partition=record.partition,
        letter_offset=record.offset,
        left_out=facts.get("left-out", ""),
    )


def _number(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() and len(text) <= 18 else None
