"""Claims about one consumer: a list of records as its topic, a list of commits as its bank, no Ray, no broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from cmt_core.text.windows import Window
from services.bank.records import CommitReport, DocumentDelete, DocumentWrite
from services.errors import BankFull, BankMismatch, BrokerError, BrokerUnreachable, RecordError, ServiceError
from services.ingest.compressor import CompressorWorker
from services.ingest.consumer import Consumer
from services.ingest.ports import BankRecord
from services.metrics import Metrics
from services.settings import Settings, load_settings
from services.stream.decode import decode
from services.stream.record import Document, RawRecord
from services.testing.lexical import LexicalMemory, LexicalModel
from tests.waiting import until


class ListTopic:
    """A source that reads from a list of records, as the Kafka source does from its topic."""

    def __init__(self, records: Sequence[RawRecord]) -> None:
        self.records = list(records)
        self.committed: dict[int, int] = {}
        self.paused = self.closed = False
        self.pauses = 0
        self.polls_while_paused = 0
        self.mine = {0, 1}
        self.held: set[int] = set()
        self.tell: Callable[[set[int]], None] = lambda partitions: None
        self.commit_answers: list[bool | Exception] = []
        self.positions: dict[int, int] = {}
        self.from_beginning: list[bool] = []

    def open(self, on_revoked: Callable[[set[int]], None]) -> ListTopic:
        self.tell = on_revoked
        return self

    def poll(self, timeout_s: float, max_records: int) -> list[RawRecord]:
        if self.paused:
            self.polls_while_paused += 1
        if self.paused or not self.records:
            time.sleep(0.005)
            return []
        ready = [one for one in self.records if one.partition not in self.held][:max_records]
        self.records = [one for one in self.records if one not in ready]
        for one in ready:
            self.positions[one.partition] = one.offset + one.covers
        return ready

    def rebalance(self, mine: set[int]) -> None:
        """As the Kafka client does it: all partitions are told revoked, and those that stay are read on."""
        self.tell(set(self.mine))
        self.mine = mine
        self.positions = {partition: offset for partition, offset in self.positions.items() if partition in mine}

    def assign(self, partitions: set[int], from_beginning: bool = False) -> None:
        self.mine = set(partitions)
        self.positions = {partition: offset for partition, offset in self.positions.items() if partition in partitions}
        if partitions:
            self.from_beginning.append(from_beginning)

    def hold(self, partitions: set[int]) -> None:
        self.held = set(partitions)

    def pause(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.paused = False

    def commit(self, offsets: Mapping[int, int]) -> bool:
        answer = self.commit_answers.pop(0) if self.commit_answers else True
        if isinstance(answer, Exception):
            raise answer
        if answer:
            self.committed.update(offsets)
        return answer

    def lag(self) -> dict[int, int]:
        return {0: len(self.records)}

    def assigned(self) -> set[int]:
        return set(self.mine)

    def read_up_to(self) -> dict[int, int]:
        return dict(self.positions)

    def close(self) -> None:
        self.closed = True


class Letters:
    """A dead-letter topic in memory."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, str]] = []
        self.failures = 0

    def send_all(self, letters: Sequence[tuple[RawRecord, RecordError, int]]) -> list[BrokerError | None]:
        return [self._send(record, error) for record, error, _ in letters]

    def _send(self, record: RawRecord, error: RecordError) -> BrokerError | None:
        if self.failures:
            self.failures -= 1
            return BrokerUnreachable("no broker")
        self.kept.append((record.offset, error.reason))
        return None

    def close(self) -> None:
        pass


class Commits:
    """A bank that keeps its commits in a list; `answers` are raised first, `refused` ids never fit."""

    def __init__(self) -> None:
        self.batches: list[list[BankRecord]] = []
        self.answers: list[Exception] = []
        self.always: Exception | None = None
        self.refused: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()

    def __call__(self, records: Sequence[BankRecord]) -> CommitReport:
        self.asked.set()
        self.gate.wait(20.0)
        if self.always is not None:
            raise self.always
        if self.answers:
            raise self.answers.pop(0)
        if any(record.doc_id in self.refused for record in records):
            raise ValueError("a key is zero")
        self.batches.append(list(records))
        return CommitReport(len(self.batches), len(records), 0, 0, 0.0)

    @property
    def records(self) -> list[BankRecord]:
        return [record for batch in self.batches for record in batch]


class Fussy(LexicalModel):
    """Refuses a batch with one bad text, as a model does."""

    def compress(self, windows: Sequence[Window]) -> list[LexicalMemory]:
        if any("POISON" in window.text for window in windows):
            raise ValueError("this text can't be compressed")
        return super().compress(windows)


class Rig:
    """A consumer between a list of records and a list of commits."""

    def __init__(self, records: Sequence[RawRecord], retry_for_s: float = 5.0, depth: int = 1, **flags: Any) -> None:
        self.settings: Settings = load_settings(**{"ingest__batch_windows": 4, "ingest__batch_wait_s": 0.02} | flags)
        self.topic, self.letters, self.bank, self.metrics = ListTopic(records), Letters(), Commits(), Metrics()
        self.worker = CompressorWorker(self.settings, lambda settings: Fussy(), self.metrics)
        self.epochs = iter(range(100, 200))
        self.consumer = Consumer(
            self.settings,
            self.topic.open,
            lambda: self.letters,
            self.worker.compress,
            self.bank,
            lambda: next(self.epochs),
            self.metrics,
            depth=depth,
            retry_for_s=retry_for_s,
        )

    def until(self, claim: Callable[[], bool], timeout_s: float = 10.0) -> None:
        until(claim, timeout_s, seen=self.consumer.status)


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    started: list[Rig] = []
    yield started
    for rig in started:
        rig.bank.gate.set()
        rig.consumer.stop(10.0)


@pytest.fixture
def run(rigs: list[Rig]) -> Callable[..., Rig]:
    def start(records: Sequence[RawRecord], prepare: Callable[[Rig], None] = lambda rig: None, **flags: Any) -> Rig:
        rig = Rig(records, **flags)
        prepare(rig)
        rigs.append(rig)
        rig.consumer.start()
        return rig

    return start


def record(offset: int, value: bytes | None, key: bytes | None = None, partition: int = 0) -> RawRecord:
    return RawRecord("documents", partition, offset, int(time.time() * 1000), key, value)


def article(offset: int, text: str = "", partition: int = 0) -> RawRecord:
    text = text or f"Bridge number {offset} was opened."
    document = Document(id=f"d{offset}", text=text, published_at=datetime.now(UTC))
    return record(offset, document.to_json(), document.id.encode(), partition)


def test_documents_and_deletes_reach_the_bank_with_their_position(run: Callable[..., Rig]) -> None:
    rig = run([article(0), article(1), record(2, None, b"d0")])
    rig.until(lambda: rig.topic.committed == {0: 3})
    kinds = [(type(one), one.doc_id, one.position.offset) for one in rig.bank.records]
    assert kinds == [(DocumentWrite, "d0", 0), (DocumentWrite, "d1", 1), (DocumentDelete, "d0", 2)]
    assert {one.position.epoch for one in rig.bank.records} == {100}
    assert rig.consumer.status().outcomes == {"written": 2, "deleted": 1}


def test_offsets_wait_for_the_bank(run: Callable[..., Rig]) -> None:
    rig = run([article(0)], lambda rig: rig.bank.gate.clear())
    time.sleep(0.5)
    assert rig.topic.committed == {}
    assert rig.consumer.status().in_flight_records == 1
    rig.bank.gate.set()
    rig.until(lambda: rig.topic.committed == {0: 1})


def test_a_bank_that_comes_back_loses_nothing(run: Callable[..., Rig]) -> None:
    rig = run([article(0), article(1)], lambda rig: rig.bank.answers.extend([BankFull("full"), BankFull("full")]))
    rig.until(lambda: rig.topic.committed == {0: 2})
    assert [one.doc_id for one in rig.bank.records] == ["d0", "d1"]


def test_a_bank_that_stays_full_ends_the_consumer_with_nothing_committed(run: Callable[..., Rig]) -> None:
    rig = run([article(0)], lambda rig: setattr(rig.bank, "always", BankFull("full")), retry_for_s=0.3)
    rig.until(lambda: rig.topic.closed)
    status = rig.consumer.status()
    assert isinstance(status.failure, BankFull)
    assert not status.running
    assert rig.topic.committed == {}


def test_a_bank_of_another_checkpoint_is_not_tried_twice(run: Callable[..., Rig]) -> None:
    rig = run([article(0)], lambda rig: setattr(rig.bank, "always", BankMismatch("other")), retry_for_s=60.0)
    rig.until(lambda: isinstance(rig.consumer.status().failure, BankMismatch), timeout_s=5.0)


def test_earlier_records_stay_committed_when_a_later_batch_fails(run: Callable[..., Rig]) -> None:
    rig = run([article(offset) for offset in range(4)], retry_for_s=0.3)
    rig.until(lambda: rig.topic.committed == {0: 4})
    rig.bank.always = BankFull("full")
    rig.topic.records.append(article(4))
    rig.until(lambda: rig.topic.closed)
    assert rig.topic.committed == {0: 4}


def test_an_unreadable_record_is_dead_lettered_while_the_stream_goes_on(run: Callable[..., Rig]) -> None:
    rig = run([article(0), record(1, b"{not json"), record(2, b'{"id": "x"}'), article(3)])
    rig.until(lambda: rig.topic.committed == {0: 4})
    assert rig.letters.kept == [(1, "not_json"), (2, "schema")]
    assert [one.doc_id for one in rig.bank.records] == ["d0", "d3"]


def test_what_ends_a_partition_without_records_is_committed_too(run: Callable[..., Rig]) -> None:
    """Control records, aborted transactions, and offsets that compaction or retention took away."""
    rig = run([article(0), article(1)])
    rig.until(lambda: rig.topic.committed == {0: 2})
    rig.topic.positions = {0: 5, 1: 7}
    rig.until(lambda: rig.topic.committed == {0: 5, 1: 7})


def test_a_gap_behind_an_unfinished_record_is_not_committed(run: Callable[..., Rig]) -> None:
    rig = run([article(0)], lambda rig: rig.bank.gate.clear())
    assert rig.bank.asked.wait(5.0)
    rig.topic.positions = {0: 9}
    seen = rig.consumer.status().measured
    rig.until(lambda: rig.consumer.status().measured > seen)
    assert rig.topic.committed == {}
    rig.bank.gate.set()
    rig.until(lambda: rig.topic.committed == {0: 9})


def test_a_batch_that_the_client_could_not_decode_is_one_letter_and_the_stream_goes_on(run: Callable[..., Rig]) -> None:
    broken = RawRecord("documents", 0, 1, -1, None, b"raw", undecodable="offsets 1 to 6: unknown codec", covers=6)
    rig = run([article(0), broken, article(7)])
    rig.until(lambda: rig.topic.committed == {0: 8})
    assert rig.letters.kept == [(1, "undecodable")]
    assert [one.doc_id for one in rig.bank.records] == ["d0", "d7"]


HOSTILE_TIMES_MS = [1_764_057_600_000_000, 1_764_057_600_000_000_000, 253_402_300_800_000, 2**63 - 1, -(2**63), -1, 0]


@pytest.mark.parametrize("time_ms", HOSTILE_TIMES_MS)
def test_a_record_of_any_time_is_read(run: Callable[..., Rig], time_ms: int) -> None:
    document = Document("odd", "The Tarn dam was inspected.").to_json()
    rig = run([RawRecord("documents", 0, 0, time_ms, b"odd", document), article(1)])
    rig.until(lambda: rig.topic.committed == {0: 2})
    assert [one.doc_id for one in rig.bank.records] == ["odd", "d1"]
    if time_ms > 10**15:
        assert rig.bank.records[0].position.record_time.year in (2025, 1978, 2262)


def test_whatever_the_work_on_a_record_raises_is_that_records_letter(
    run: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_or_fail(record: RawRecord, *others: Any) -> Any:
        if record.offset == 1:
            raise KeyError("a fault that nobody thought of")
        return decode(record, *others)

    monkeypatch.setattr("services.ingest.batch_work.decode", decode_or_fail)
    rig = run([article(0), article(1), article(2)])
    rig.until(lambda: rig.topic.committed == {0: 3})
    assert rig.letters.kept == [(1, "unreadable")]
    assert [one.doc_id for one in rig.bank.records] == ["d0", "d2"]


def test_the_culprit_of_a_batch_is_dead_lettered_alone(run: Callable[..., Rig]) -> None:
    """One text fails the compressor, one fails the bank, one gives no window with a direction to search by."""
    records = [article(0), article(1, "POISON"), article(2), article(3)]
    rig = run(records, lambda rig: rig.bank.refused.add("d2"))
    rig.until(lambda: rig.topic.committed == {0: 4})
    assert sorted(rig.letters.kept) == [(1, "unstorable"), (2, "unstorable")]
    assert [one.doc_id for one in rig.bank.records] == ["d0", "d3"]
    assert rig.metrics.snapshot().numbers["cmt_ingest_dead_letters_total"] == {("unstorable",): 2.0}


def test_a_dead_letter_that_can_not_be_sent_stops_its_partition_and_no_other(run: Callable[..., Rig]) -> None:
    rig = run(
        [article(0), record(1, b"{"), article(0, partition=1)], lambda rig: setattr(rig.letters, "failures", 10**6)
    )
    rig.until(lambda: rig.topic.held == {0})
    rig.topic.records += [article(2), *(article(offset, partition=1) for offset in range(1, 9))]
    rig.until(lambda: rig.topic.committed == {0: 1, 1: 9})
    assert len(rig.topic.records) == 1, "the stopped partition is not read any further"
    status = rig.consumer.status()
    assert status.running
    assert status.failure is None
    assert status.stopped == {0: "no broker"}
    rig.letters.failures = 0
    rig.until(lambda: rig.topic.committed == {0: 3, 1: 9})
    assert rig.letters.kept == [(1, "not_json")]
    rig.until(lambda: not rig.topic.held)


def test_stopping_does_not_wait_for_a_dead_letter_that_can_not_be_sent(run: Callable[..., Rig]) -> None:
    rig = run([article(0), record(1, b"{")], lambda rig: setattr(rig.letters, "failures", 10**6))
    rig.until(lambda: bool(rig.consumer.status().stopped))
    assert rig.consumer.stop(10.0)
    assert rig.topic.committed == {0: 1}


def test_assigned_partitions_are_taken_and_finished_work_of_a_lost_one_is_committed(run: Callable[..., Rig]) -> None:
    rig = run([article(0), article(0, partition=1)])
    rig.until(lambda: rig.topic.committed == {0: 1, 1: 1})
    rig.consumer.assign([1], "topic-a")
    rig.until(lambda: rig.consumer.status().assigned == {1})
    assert rig.consumer.status().wanted == {1}
    assert rig.consumer.status().topic_id == "topic-a"


def test_a_topic_made_anew_is_another_epoch(run: Callable[..., Rig]) -> None:
    rig = run([article(0)])
    rig.consumer.assign([0, 1], "topic-a")
    rig.until(lambda: rig.consumer.status().topic_id == "topic-a")
    rig.topic.records.append(article(1))
    rig.until(lambda: len(rig.bank.records) == 2)
    rig.consumer.assign([0, 1], "topic-b")
    rig.until(lambda: rig.consumer.status().topic_id == "topic-b")
    rig.topic.records.append(article(2))
    rig.until(lambda: len(rig.bank.records) == 3)
    epochs = [one.position.epoch for one in rig.bank.records]
    assert epochs[1] < epochs[2]


def test_a_topic_made_anew_under_a_reader_is_read_from_its_first_record_and_nothing_stale_is_committed(
    run: Callable[..., Rig],
) -> None:
    rig = run([])
    rig.consumer.assign([0, 1], "topic-a")
    rig.until(lambda: rig.consumer.status().topic_id == "topic-a")
    rig.topic.records.append(article(0))
    rig.until(lambda: rig.topic.committed == {0: 1})
    rig.bank.gate.clear()  # what is read of the new topic before anybody knows of it
    rig.topic.records.append(article(100))
    rig.until(lambda: not rig.topic.records)
    rig.consumer.assign([0, 1], "topic-b")
    rig.until(lambda: rig.consumer.status().topic_id == "topic-b")
    rig.bank.gate.set()
    rig.until(lambda: len(rig.bank.records) == 2)
    time.sleep(0.5)  # commits go every tenth of a second
    assert rig.topic.from_beginning == [False, True]
    assert rig.topic.committed == {0: 1}
    rig.topic.committed.clear()
    rig.topic.records += [article(0), article(1)]
    rig.until(lambda: rig.topic.committed == {0: 2})


@pytest.mark.parametrize("first", ["", "topic-a"])
def test_partitions_that_come_and_go_are_read_from_what_is_committed(run: Callable[..., Rig], first: str) -> None:
    rig = run([article(0)])
    for partitions in ([0], [0, 1], [1]):
        rig.consumer.assign(partitions, first)
        rig.until(lambda wanted=partitions: rig.consumer.status().assigned == set(wanted))
    assert not any(rig.topic.from_beginning)


def test_a_commit_that_the_group_refused_is_tried_again(run: Callable[..., Rig]) -> None:
    answers = [False, BrokerUnreachable("away"), True]
    rig = run([article(0)], lambda rig: rig.topic.commit_answers.extend(answers))
    rig.until(lambda: rig.topic.committed == {0: 1})
    assert len(rig.bank.records) == 1


def test_partitions_pause_over_the_byte_budget_while_polling_goes_on(run: Callable[..., Rig]) -> None:
    def only_one_partition(rig: Rig) -> None:
        rig.topic.mine = {0}
        rig.bank.gate.clear()

    rig = run([article(offset) for offset in range(200)], only_one_partition, ingest__in_flight_bytes=20_000)
    rig.until(lambda: rig.topic.paused and rig.topic.polls_while_paused > 20)
    assert len(rig.topic.records) > 100, "the rest of the topic is left in Kafka"
    rig.bank.gate.set()
    rig.until(lambda: rig.topic.committed == {0: 200})
    assert not rig.topic.paused
    assert len(rig.bank.records) == 200


def test_a_partition_that_fills_its_share_of_the_budget_leaves_room_for_the_others(run: Callable[..., Rig]) -> None:
    rig = run(
        [article(offset) for offset in range(200)],
        lambda rig: rig.bank.gate.clear(),
        ingest__in_flight_bytes=20_000,
    )
    rig.until(lambda: rig.topic.held == {0})
    waiting = len(rig.topic.records)
    rig.topic.records.append(article(0, partition=1))
    rig.until(lambda: len(rig.topic.records) == waiting)
    assert not rig.topic.paused
    assert waiting > 100
    rig.bank.gate.set()
    rig.until(lambda: rig.topic.committed == {0: 200, 1: 1}, timeout_s=30.0)
    assert not rig.topic.held
    assert rig.metrics.snapshot().numbers["cmt_ingest_stopped_partitions"] == {(): 0.0}


def test_records_of_a_partition_that_went_to_another_are_not_committed(run: Callable[..., Rig]) -> None:
    rig = run([article(0), article(1, partition=1)], lambda rig: rig.bank.gate.clear())
    assert rig.bank.asked.wait(5.0)
    rig.topic.rebalance({0})
    time.sleep(0.1)
    rig.bank.gate.set()
    rig.until(lambda: rig.topic.committed == {0: 1})
    rig.until(lambda: rig.consumer.status().in_flight_records == 0)
    rig.topic.mine = {0, 1}
    time.sleep(0.1)
    assert rig.topic.committed == {0: 1}


def test_a_rebalance_that_leaves_a_partition_here_loses_none_of_its_records(run: Callable[..., Rig]) -> None:
    rig = run([article(offset) for offset in range(40)], lambda rig: rig.bank.gate.clear())
    assert rig.bank.asked.wait(5.0)
    rig.topic.rebalance({0})
    time.sleep(0.1)
    rig.topic.records += [article(offset) for offset in range(40, 50)]
    rig.bank.gate.set()
    rig.until(lambda: rig.topic.committed == {0: 50})
    assert [one.position.offset for one in rig.bank.records] == list(range(50))


def test_offsets_that_begin_again_belong_to_a_new_epoch(run: Callable[..., Rig]) -> None:
    rig = run([article(5), article(6)])
    rig.until(lambda: rig.topic.committed == {0: 7})
    rig.topic.records.append(article(0))
    rig.until(lambda: len(rig.bank.records) == 3)
    assert [one.position.epoch for one in rig.bank.records] == [100, 100, 101]
    rig.until(lambda: rig.topic.committed == {0: 1})


def test_stop_finishes_what_was_begun_and_leaves_the_rest_in_kafka(run: Callable[..., Rig]) -> None:
    rig = run([article(offset) for offset in range(64)], lambda rig: rig.bank.gate.clear())
    rig.until(lambda: rig.consumer.status().in_flight_records == 64)
    assert rig.bank.asked.wait(5.0)
    threading.Timer(0.3, rig.bank.gate.set).start()
    assert rig.consumer.stop(10.0)
    stored = [one.position.offset for one in rig.bank.records]
    assert 0 < len(stored) < 64
    assert rig.topic.committed == {0: stored[-1] + 1}
    assert stored == list(range(len(stored)))
    assert rig.topic.closed


def test_stop_is_bounded_by_its_timeout(run: Callable[..., Rig]) -> None:
    rig = run([article(0)], lambda rig: rig.bank.gate.clear())
    assert rig.bank.asked.wait(5.0)
    started = time.monotonic()
    assert not rig.consumer.stop(0.3)
    assert time.monotonic() - started < 3.0
    assert rig.topic.committed == {}


def test_an_error_of_no_known_kind_ends_the_consumer_in_one_line(run: Callable[..., Rig]) -> None:
    rig = run([article(0)], lambda rig: setattr(rig.bank, "always", ZeroDivisionError("oops\nmore")))
    rig.until(lambda: rig.topic.closed)
    failure = rig.consumer.status().failure
    assert isinstance(failure, ServiceError)
    assert str(failure) == "ingest failed: ZeroDivisionError: oops more"
    assert rig.topic.committed == {}


def test_connecting_fails_as_itself() -> None:
    rig = Rig([], retry_for_s=0.2)

    def refuse(on_revoked: Callable[[set[int]], None]) -> ListTopic:
        raise BrokerUnreachable("no Kafka broker answers at nowhere:1")

    consumer = Consumer(
        rig.settings,
        refuse,
        lambda: rig.letters,
        rig.worker.compress,
        rig.bank,
        lambda: 1,
        rig.metrics,
        retry_for_s=0.2,
    )
    consumer.start()
    with pytest.raises(BrokerUnreachable, match="nowhere"):
        consumer.wait_until_connected(5.0)


def test_every_ingest_metric_of_the_consumer_and_compressor_is_set(run: Callable[..., Rig]) -> None:
    rig = run(
        [article(0), record(1, b"{"), record(2, None, b"d0"), record(3, b'{"id":"d3","text":"x y","lang":7.5}', b"k")]
    )
    rig.until(lambda: rig.topic.committed == {0: 4})
    rig.until(lambda: "cmt_ingest_lag_records" in rig.metrics.snapshot().numbers)
    from services.metrics import TABLE

    snapshot = rig.metrics.snapshot()
    wanted = {name for name in TABLE if name.startswith("cmt_ingest_")}
    assert wanted == {name for name in {*snapshot.numbers, *snapshot.histograms} if name.startswith("cmt_ingest_")}
    counts, total_s = snapshot.histograms["cmt_ingest_freshness_seconds"][()]
    assert sum(counts) == 3
    assert 0 <= total_s < 30
    assert snapshot.numbers["cmt_ingest_left_out_fields_total"] == {("lang",): 1, ("key",): 1}
