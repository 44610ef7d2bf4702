"""Claims about shared commits and about letters: what one caller or one letter breaks, it breaks for itself alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from services.bank.records import CommitReport, DocumentDelete, Position
from services.errors import BankFull, BankUnavailable, BrokerError, BrokerUnreachable, RecordError
from services.ingest.dead_letter_sender import DeadLetterSender
from services.ingest.group_commit import GroupCommit
from services.ingest.inbox import PolledRecord
from services.ingest.offsets import OffsetTracker
from services.ingest.ports import BankRecord
from services.stream.record import RawRecord
from tests.waiting import until


def delete(name: str) -> DocumentDelete:
    return DocumentDelete("default", name, Position(1, 0, 0, datetime.now(UTC)))


class Bank:
    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.asked = threading.Event()

    def __call__(self, records: Sequence[BankRecord]) -> CommitReport:
        self.asked.set()
        self.gate.wait(10.0)
        names = [one.doc_id for one in records]
        if self.failure is not None:
            raise self.failure
        if "misfit" in names:
            raise ValueError("a key is zero")
        self.commits.append(names)
        return CommitReport(len(self.commits), len(names), 0, len(names), 0.0)


@pytest.fixture
def grouped() -> Iterator[Callable[..., tuple[GroupCommit, Bank]]]:
    made: list[tuple[GroupCommit, Bank]] = []

    def make(max_rows: int = 100, max_bytes: int = 10**6, wait_s: float = 0.2) -> tuple[GroupCommit, Bank]:
        bank = Bank()
        made.append((GroupCommit(bank, max_rows, max_bytes, wait_s, memory_bytes=1000), bank))
        return made[-1]

    yield make
    for group, bank in made:
        bank.gate.set()
        group.close()


def behind_a_commit(group: GroupCommit, bank: Bank, names: str) -> list[CommitReport]:
    """Submits while the bank is at a first commit, and lets it go on when all have come."""
    bank.gate.clear()
    with ThreadPoolExecutor(1 + len(names)) as pool:
        first = pool.submit(group.submit, [delete("first")])
        assert bank.asked.wait(10.0)
        calls = [pool.submit(group.submit, [delete(name)]) for name in names]
        deadline = time.monotonic() + 10.0
        while len(group._queue) < len(names):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        bank.gate.set()
        assert first.result().version == 1
        return [call.result() for call in calls]


def test_callers_that_come_during_a_commit_share_the_next_and_its_stale_records_count_once(
    grouped: Callable[..., tuple[GroupCommit, Bank]],
) -> None:
    group, bank = grouped(wait_s=0.0)
    reports = behind_a_commit(group, bank, "abcde")
    assert [sorted(names) for names in bank.commits] == [["first"], ["a", "b", "c", "d", "e"]]
    assert sum(report.stale for report in reports) == 5
    assert {report.version for report in reports} == {2}


@pytest.mark.parametrize(("limits", "sizes"), [({"max_rows": 2}, [1, 2, 2, 1]), ({"max_bytes": 3000}, [1, 3, 2])])
def test_a_commit_is_cut_by_rows_and_by_bytes(
    grouped: Callable[..., tuple[GroupCommit, Bank]], limits: dict[str, int], sizes: list[int]
) -> None:
    group, bank = grouped(wait_s=0.0, **limits)
    behind_a_commit(group, bank, "abcde")
    assert list(map(len, bank.commits)) == sizes


def test_a_write_after_a_pause_is_committed_at_once(grouped: Callable[..., tuple[GroupCommit, Bank]]) -> None:
    group, _ = grouped(wait_s=60.0)
    assert group.submit([delete("a")]).version == 1


def test_a_write_soon_after_another_waits_for_company(grouped: Callable[..., tuple[GroupCommit, Bank]]) -> None:
    group, bank = grouped(max_rows=2, wait_s=60.0)
    group.submit([delete("a")])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: group.submit([delete(name)]), "bc"))
    assert [sorted(names) for names in bank.commits] == [["a"], ["b", "c"]]


def test_a_misfit_fails_its_own_caller_only(grouped: Callable[..., tuple[GroupCommit, Bank]]) -> None:
    group, bank = grouped()
    with ThreadPoolExecutor(3) as pool:
        good, bad, other = (pool.submit(group.submit, [delete(name)]) for name in ("a", "misfit", "b"))
        assert good.result().version
        assert other.result().version
        with pytest.raises(ValueError, match="key is zero"):
            bad.result()
    assert sorted(name for names in bank.commits for name in names) == ["a", "b"]


def test_a_bank_that_fails_fails_all_callers_and_the_next_commit_is_tried(
    grouped: Callable[..., tuple[GroupCommit, Bank]],
) -> None:
    group, bank = grouped()
    bank.failure = BankFull("full")
    with ThreadPoolExecutor(2) as pool:
        for call in [pool.submit(group.submit, [delete(name)]) for name in "ab"]:
            with pytest.raises(BankFull):
                call.result()
    bank.failure = None
    assert group.submit([delete("a")]).version == 1


def test_closing_commits_what_waits_and_refuses_the_rest() -> None:
    bank = Bank()
    group = GroupCommit(bank, 100, 10**6, 60.0, 1)
    group.submit([delete("first")])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(group.submit, [delete("a")])
        deadline = time.monotonic() + 10.0
        while not group._queue:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        group.close()
        assert waiting.result().version == 2
    with pytest.raises(BankUnavailable):
        group.submit([delete("b")])


class Sink:
    """A dead-letter topic that refuses some offsets, or everything."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, int]] = []
        self.refused: set[int] = set()
        self.calls = 0

    def send_all(self, letters: Sequence[tuple[RawRecord, RecordError, int]]) -> list[BrokerError | None]:
        self.calls += 1
        answers: list[BrokerError | None] = []
        for record, _, _ in letters:
            refused = record.offset in self.refused
            answers.append(BrokerUnreachable(f"no room for {record.offset}") if refused else None)
            if not refused:
                self.kept.append((record.partition, record.offset))
        return answers

    def close(self) -> None:
        pass


def test_letters_are_finished_when_they_are_safe_and_one_that_is_not_stops_its_partition() -> None:
    tracker, sink = OffsetTracker(), Sink()
    sink.refused = {1}
    box = DeadLetterSender(sink, lambda taken, error: tracker.finish(taken.ticket))

    def letter(partition: int, offset: int) -> tuple[PolledRecord, RecordError]:
        record = RawRecord("t", partition, offset, 0, b"k", b"{")
        return PolledRecord(record, tracker.start(partition, offset), 1), RecordError("not_json", "x")

    try:
        box.put([letter(0, 0), letter(0, 1), letter(1, 7)])
        until(lambda: box.stopped() == {0: "no room for 1"})
        assert tracker.committable() == {0: 1, 1: 8}
        assert box.pending == 1
        sink.refused = set()
        until(lambda: box.pending == 0 and not box.stopped())
        assert tracker.committable() == {0: 2, 1: 8}
        assert sorted(sink.kept) == [(0, 0), (0, 1), (1, 7)]
        sink.refused = {2}
        box.put([letter(0, 2)])
        until(lambda: box.stopped() != {})
        tracker.drop([0])
        until(lambda: box.pending == 0 and not box.stopped())
        assert (0, 2) not in sink.kept, "the partition's new owner sends it"
    finally:
        box.close()
