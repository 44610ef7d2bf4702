"""What the page shows of an ingest that runs elsewhere: from Kafka and the bank, or unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from services.errors import BrokerUnreachable
from services.metrics import Metrics, Snapshot
from services.query.gateway.responses import IngestInfo
from services.query.gateway.service import QueryService
from services.query.gateway.stream_look import StreamLook, StreamView, look_at_kafka
from services.settings import KafkaSettings, load_settings
from tests.serving import LocalEngine, SentTombstones, publish


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def looked(look: StreamLook) -> tuple[StreamView | None, float | None]:
    """What is known after the look that was begun has ended."""

    async def run() -> tuple[StreamView | None, float | None]:
        look.latest()
        assert look._looking is not None
        await look._looking
        return look._seen, look._rate

    return asyncio.run(run())


def test_a_look_is_one_every_few_seconds_and_its_rate_is_of_what_was_committed_between_two() -> None:
    now, views = Now(), iter([StreamView(9, 100, 1), StreamView(4, 150, 2)])
    look = StreamLook(lambda: next(views), every_s=5.0, clock=now)
    assert looked(look) == (StreamView(9, 100, 1), None)
    now.s = 4.9

    async def too_early() -> object:
        return look.latest()

    assert asyncio.run(too_early()) == (StreamView(9, 100, 1), None)
    now.s = 10.0
    assert looked(look) == (StreamView(4, 150, 2), 5.0)


@pytest.mark.parametrize("error", [BrokerUnreachable("no broker"), ValueError("an odd answer"), MemoryError()])
def test_what_kafka_can_not_say_is_unknown_and_asked_again(error: Exception) -> None:
    now, fates = Now(), list[Callable[[], StreamView]]()

    def fails() -> StreamView:
        raise error

    fates[:] = [lambda: StreamView(9, 100, 1), fails, lambda: StreamView(0, 100, 1)]
    look = StreamLook(lambda: fates.pop(0)(), every_s=5.0, clock=now)
    looked(look)
    now.s = 5.0
    assert looked(look) == (None, None)
    now.s = 10.0
    assert looked(look) == (StreamView(0, 100, 1), None)


def test_no_broker_is_started_to_be_asked() -> None:
    with pytest.raises(BrokerUnreachable):
        look_at_kafka(KafkaSettings(embedded_port=1))


def ingest_of(snapshots: Sequence[Snapshot], stream: StreamView | None, *, record_age_s: float = 2.5) -> IngestInfo:
    """What `/v1/stats` says of ingest."""

    async def run() -> IngestInfo:
        engine = LocalEngine()
        for doc_id, later, age_s in (("old", 1, 3600.0), ("new", 2, record_age_s)):
            at = datetime.now(UTC) + timedelta(days=later)
            publish(
                engine.bank, engine.model, doc_id, "Text.", ingested_at=at, record_time=at - timedelta(seconds=age_s)
            )

        async def given() -> list[Snapshot]:
            return list(snapshots)

        service = QueryService(load_settings(), engine, Metrics(), given, SentTombstones())
        service._stream = StreamLook(lambda: stream or fail())
        await service.stats(5, "default")
        assert service._stream._looking is not None
        await service._stream._looking
        service._stats.clear()
        return (await service.stats(5, "default")).ingest

    return asyncio.run(run())


def fail() -> StreamView:
    raise BrokerUnreachable("no broker")


def test_stats_without_an_ingest_here_are_kafkas_and_the_banks() -> None:
    seen = ingest_of([], StreamView(lag_records=7, committed_records=40, dead_letters=3))
    assert (seen.running, seen.lag_records, seen.dead_letters) == (None, 7, 3)
    assert seen.freshness_s == 2.5


def test_stats_without_an_ingest_here_and_without_kafka_are_unknown() -> None:
    seen = ingest_of([], None)
    assert (seen.running, seen.lag_records, seen.dead_letters, seen.records_per_s) == (None, None, None, None)
