"""Claims about the queue between polling and compressing."""

from __future__ import annotations

import threading
import time

from services.ingest.inbox import Inbox, PolledRecord
from services.ingest.offsets import Ticket
from services.stream.record import RawRecord


def taken(offset: int, value: bytes | None = b"x" * 10, partition: int = 0) -> PolledRecord:
    return PolledRecord(RawRecord("documents", partition, offset, 0, b"key", value), Ticket(partition, offset), 1)


LARGE = b"x" * 100_000


def offsets(batch: list[PolledRecord]) -> list[int]:
    return [one.record.offset for one in batch]


def test_a_full_batch_does_not_wait() -> None:
    inbox = Inbox(batch_windows=3, batch_wait_s=60.0)
    inbox.put(taken(offset) for offset in range(5))
    assert offsets(inbox.take(0.0)) == [0, 1, 2]


def test_a_first_record_goes_at_once_while_nothing_is_under_way() -> None:
    inbox = Inbox(batch_windows=3, batch_wait_s=60.0)
    inbox.put([taken(0)])
    assert offsets(inbox.take(0.0)) == [0]


def test_behind_another_batch_one_that_does_not_fill_goes_after_its_wait() -> None:
    inbox = Inbox(batch_windows=3, batch_wait_s=0.1)
    inbox.put([taken(0)])
    inbox.take(0.0)
    inbox.put([taken(1)])
    started = time.monotonic()
    assert offsets(inbox.take(1.0)) == [1]
    assert time.monotonic() - started > 0.05


def test_a_batch_that_waits_goes_when_the_one_before_is_finished() -> None:
    inbox = Inbox(batch_windows=3, batch_wait_s=60.0)
    inbox.put([taken(0)])
    first = inbox.take(0.0)
    inbox.put([taken(1)])
    threading.Timer(0.1, lambda: inbox.release(first)).start()
    started = time.monotonic()
    assert offsets(inbox.take(60.0)) == [1]
    assert time.monotonic() - started < 30.0


def test_a_record_that_came_late_is_in_the_batch_that_waits() -> None:
    inbox = Inbox(batch_windows=2, batch_wait_s=60.0)
    inbox.put([taken(0)])
    inbox.take(0.0)
    inbox.put([taken(1)])
    threading.Timer(0.1, lambda: inbox.put([taken(2)])).start()
    started = time.monotonic()
    assert offsets(inbox.take(1.0)) == [1, 2]
    assert time.monotonic() - started < 30.0


def test_a_long_document_fills_a_batch_by_itself() -> None:
    inbox = Inbox(batch_windows=4, batch_wait_s=0.0)
    inbox.put([taken(0, LARGE), taken(1, LARGE), taken(2)])
    assert offsets(inbox.take(0.0)) == [0]


def test_small_documents_do_not_wait_in_a_batch_with_a_large_one() -> None:
    inbox = Inbox(batch_windows=32, batch_wait_s=0.0, threads=3)
    inbox.put([taken(0), taken(1, b"x" * 8000), taken(2), taken(3, LARGE), taken(4)])
    assert sorted([offsets(inbox.take(0.0)) for _ in range(3)]) == [[0, 2, 4], [1], [3]]


def test_one_thread_is_left_for_small_documents_however_many_large_ones_wait() -> None:
    inbox = Inbox(batch_windows=4, batch_wait_s=0.0, threads=3)
    inbox.put(taken(offset, LARGE) for offset in range(5))
    first, second = inbox.take(0.0), inbox.take(0.0)
    assert (offsets(first), offsets(second)) == ([0], [1])
    assert inbox.take(0.0) == []
    inbox.put([taken(5, partition=1)])
    assert offsets(inbox.take(0.0)) == [5]
    inbox.release(first)
    assert offsets(inbox.take(0.0)) == [2]


def test_large_documents_take_their_turn_among_small_ones() -> None:
    inbox = Inbox(batch_windows=2, batch_wait_s=0.0, threads=1)
    inbox.put([taken(0), taken(1), taken(2, LARGE), taken(3), taken(4)])
    order = []
    for _ in range(3):
        order.append(offsets(batch := inbox.take(0.0)))
        inbox.release(batch)
    assert order == [[0, 1], [2], [3, 4]]


def test_the_estimate_of_windows_is_learned() -> None:
    inbox = Inbox(batch_windows=4, batch_wait_s=0.0)
    for _ in range(100):
        inbox.learn(value_bytes=4000, windows=1)
    inbox.put(taken(offset, b"x" * 4000) for offset in range(8))
    assert len(inbox.take(0.0)) in (3, 4)


def test_bytes_are_in_flight_from_put_to_release() -> None:
    inbox = Inbox(batch_windows=2, batch_wait_s=0.0)
    inbox.put([taken(0, b"x" * 200), taken(1, None, partition=1)])
    held = inbox.in_flight_bytes
    assert held > 200
    assert sum(inbox.bytes_by_partition.values()) == held
    assert inbox.bytes_by_partition.keys() == {0, 1}
    batch = inbox.take(0.0)
    assert (inbox.in_flight_bytes, inbox.in_flight_records) == (held, 2)
    inbox.release(batch)
    assert (inbox.in_flight_bytes, inbox.in_flight_records) == (0, 0)
    assert inbox.bytes_by_partition == {}


def test_a_closed_inbox_gives_nothing_and_wakes_the_waiting() -> None:
    inbox = Inbox(batch_windows=2, batch_wait_s=60.0)
    inbox.put([taken(0)])
    inbox.take(0.0)
    inbox.put([taken(1)])
    threading.Timer(0.1, inbox.close).start()
    started = time.monotonic()
    assert inbox.take(60.0) == []
    assert time.monotonic() - started < 30.0
    assert inbox.in_flight_records == 1, "what was begun is still under way"
