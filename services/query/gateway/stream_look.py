"""What Kafka says of an ingest that reports nothing here: it runs as a command of its own, on another cluster, or not at all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.errors import TopicMissing
from services.settings import KafkaSettings
from services.stream.broker import running_broker
from services.stream.progress import partition_progress

__all__ = ["StreamLook", "StreamView", "look_at_kafka"]

_log = logging.getLogger(__name__)
_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class StreamView:
    """Records between committed and end offset, records committed, and letters in the dead-letter topic."""

    lag_records: int
    committed_records: int
    dead_letters: int


def look_at_kafka(settings: KafkaSettings) -> StreamView:
    """Offsets alone; joins no group and starts no broker. Raises BrokerError or PortInUse."""
    bootstrap = running_broker(settings)
    partitions = partition_progress(settings, bootstrap)
    try:
        letters = partition_progress(settings.model_copy(update={"topic": settings.dlq_topic}), bootstrap)
    except TopicMissing:  # it is made with the first ingest
        letters = []
    return StreamView(
        sum(one.lag for one in partitions),
        sum(one.committed or 0 for one in partitions),
        sum(one.lag for one in letters),
    )


class StreamLook:
    """The latest look, and records a second between the last two; nobody waits for one. Belongs to one event loop.

    `look` blocks, in a thread, for as long as Kafka takes; what it raises means that nothing is known.
    """

    def __init__(
        self,
        look: Callable[[], StreamView],
        every_s: float = _EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._every_s, self._clock = look, every_s, clock
        self._seen: StreamView | None = None
        self._at = float("-inf")
        self._rate: float | None = None
        self._looking: asyncio.Task[None] | None = None

    def latest(self) -> tuple[StreamView | None, float | None]:
        """What the last look saw, with the rate; None where nothing is known. Begins another look when it is time."""
        if (self._looking is None or self._looking.done()) and self._clock() - self._at >= self._every_s:
            self._looking = asyncio.create_task(self._refresh())
        return self._seen, self._rate

    async def _refresh(self) -> None:
        before, before_at = self._seen, self._at
        try:
            self._seen = await asyncio.to_thread(self._look)
        except Exception as error:  # noqa: BLE001 - a page must show the rest, whatever Kafka or its client does
            _log.debug("Kafka can't be looked at: %s", error)
            self._seen = None
        self._at = self._clock()
        self._rate = None
        if before is not None and self._seen is not None and self._at > before_at:
            moved = max(0, self._seen.committed_records - before.committed_records)
            self._rate = round(moved / (self._at - before_at), 2)
