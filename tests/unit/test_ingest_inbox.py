"""Claims about the queue between polling and compressing."""

from __future__ import annotations

import threading
import time

from services.ingest.inbox import Inbox, Taken
from services.ingest.offsets import Ticket
from services.stream.record import RawRecord


def taken(offset: int, value: bytes | None = b"x" * 10) -> Taken:
    return Taken(RawRecord("documents", 0, offset, 0, b"key", value), Ticket(0, offset), 1)


def offsets(batch: list[Taken]) -> list[int]:
    return [one.record.offset for one in batch]


def test_a_full_batch_does_not_wait() -> None:
    inbox = Inbox(batch_windows=3, batch_wait_s=60.0)
    inbox.put(taken(offset) for offset in range(5))
    assert offsets(inbox.take(0.0)) == [0, 1, 2]


def test_a_batch_that_does_not_fill_goes_after_its_wait() -> None:
    inbox = Inbox(batch_windows=3, batch_wait_s=0.1)
    inbox.put([taken(0)])
    started = time.monotonic()
    assert offsets(inbox.take(1.0)) == [0]
    assert 0.05 < time.monotonic() - started < 0.9


def test_a_record_that_came_late_is_in_the_batch_that_waits() -> None:
    inbox = Inbox(batch_windows=2, batch_wait_s=5.0)
    inbox.put([taken(0)])
    threading.Timer(0.1, lambda: inbox.put([taken(1)])).start()
    started = time.monotonic()
    assert offsets(inbox.take(1.0)) == [0, 1]
    assert time.monotonic() - started < 3.0


def test_a_long_document_fills_a_batch_by_itself() -> None:
    inbox = Inbox(batch_windows=4, batch_wait_s=0.0)
    inbox.put([taken(0, b"x" * 100_000), taken(1)])
    assert offsets(inbox.take(0.0)) == [0]
    assert offsets(inbox.take(0.0)) == [1]


def test_the_estimate_of_windows_is_learned() -> None:
    inbox = Inbox(batch_windows=4, batch_wait_s=0.0)
    for _ in range(100):
        inbox.learn(value_bytes=4000, windows=1)
    inbox.put(taken(offset, b"x" * 4000) for offset in range(8))
    assert len(inbox.take(0.0)) in (3, 4)


def test_bytes_are_in_flight_from_put_to_release() -> None:
    inbox = Inbox(batch_windows=2, batch_wait_s=0.0)
    inbox.put([taken(0, b"x" * 1000), taken(1, None)])
    held = inbox.in_flight_bytes
    assert held > 1000
    batch = inbox.take(0.0)
    assert (inbox.in_flight_bytes, inbox.in_flight_records) == (held, 2)
    inbox.release(batch)
    assert (inbox.in_flight_bytes, inbox.in_flight_records) == (0, 0)


def test_a_closed_inbox_gives_nothing_and_wakes_the_waiting() -> None:
    inbox = Inbox(batch_windows=2, batch_wait_s=60.0)
    inbox.put([taken(0)])
    threading.Timer(0.1, inbox.close).start()
    started = time.monotonic()
    assert inbox.take(60.0) == []
    assert time.monotonic() - started < 10.0
    assert inbox.in_flight_records == 0
