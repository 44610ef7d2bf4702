"""Waiting for ingest to catch up ends when nothing is done any more, however long it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from services.errors import ServiceError
from services.ingest import pipeline
from services.ingest.consumer import ConsumerStatus
from services.ingest.pipeline import IngestHandle
from services.settings import Settings


class Scripted(IngestHandle):
    """A handle whose one consumer has written as many records as `done` says of the seconds that went by, of 10."""

    def __init__(self, done: Any, clock: list[float]) -> None:
        super().__init__(Settings(), "broker:9092", None)
        self._done, self._clock, self._looks = done, clock, 0

    def _statuses(self) -> list[ConsumerStatus]:
        self._looks += 1
        written = min(10, self._done(self._clock[0]))
        return [ConsumerStatus(True, None, {0: 10 - written}, self._looks, {"written": written}, 0, 10 - written, 0)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(pipeline, "topic_partitions", lambda *_: 1)
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: now[0])
    return now


def test_a_slow_ingest_that_goes_on_is_waited_for(clock: list[float]) -> None:
    def pause(seconds: float) -> bool:
        clock[0] += 10
        return False

    assert Scripted(lambda now: int(now // 100), clock).wait_until_caught_up(180, pause)  # 1,000 seconds in all
    assert clock[0] >= 1000


def test_one_that_dies_at_the_same_record_again_and_again_is_told(clock: list[float]) -> None:
    def pause(seconds: float) -> bool:
        clock[0] += 10
        return False

    with pytest.raises(ServiceError, match="no further for 180 s"):
        Scripted(lambda now: int(now // 20) % 5, clock).wait_until_caught_up(180, pause)
    assert clock[0] < 300


def test_one_that_stands_still_is_told(clock: list[float]) -> None:
    def pause(seconds: float) -> bool:
        clock[0] += 10
        return False

    with pytest.raises(ServiceError, match=r"no further for 180 s: 4 written; lag 6, in flight 6"):
        Scripted(lambda now: min(4, int(now // 100)), clock).wait_until_caught_up(180, pause)
    assert 580 <= clock[0] < 700
