"""The threads of ingest meet what nobody expects: who waits is told, the next one is served, a consumer ends with the error."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.bank.records import CommitReport, DocumentDelete, Position
from services.bank.schema import BankLayout
from services.bank.store import bank_errors
from services.bank.writer import BankWriter
from services.errors import BankUnavailable, BrokerError, RecordError
from services.ingest.dead_letter_sender import DeadLetterSender
from services.ingest.group_commit import GroupCommit
from services.ingest.inbox import PolledRecord
from services.ingest.offsets import OffsetTracker
from services.ingest.ports import BankRecord
from services.ingest.stages import StagedCompressor
from services.metrics import Metrics
from services.stream.record import RawRecord
from services.testing.lexical import LexicalModel
from tests.unit.test_ingest_consumer import Rig, article
from tests.waiting import until


class PanicException(BaseException):
    """As pyo3 raises it where Rust code panics."""


FAULTS = [RuntimeError("odd"), KeyError("odd"), MemoryError(), PanicException("odd"), SystemExit(1)]


class Once:
    """Raises its fault at the first call, and never again."""

    def __init__(self, fault: BaseException) -> None:
        self._faults = [fault]
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            fault = self._faults.pop() if self._faults else None
        if fault is not None:
            raise fault


class OnceMetrics(Metrics):
    """Fails at the first write of one metric."""

    def __init__(self, name: str, fault: BaseException) -> None:
        super().__init__()
        self._name, self._once = name, Once(fault)

    def observe(self, name: str, value: float, **labels: str) -> None:
        if name == self._name and labels != {"stage": "pre"}:
            self._once()
        super().observe(name, value, **labels)


def failures(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return metrics.snapshot().numbers.get("cmt_thread_failures_total", {})


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("metric", "thread"),
    [("cmt_ingest_batch_windows", "compress-core"), ("cmt_ingest_stage_seconds", "compress-post")],
)
def test_a_stage_that_fails_outside_of_the_model_wakes_its_callers(
    metric: str, thread: str, fault: BaseException
) -> None:
    metrics = OnceMetrics(metric, fault)
    stages = StagedCompressor(LexicalModel(), metrics, 4096)
    try:
        first: list[Any] = []

        def call() -> None:
            try:
                first.append(stages.compress([("", "One bridge opened.")]))
            except Exception as error:  # noqa: BLE001 - SystemExit must not come this far
                first.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        caller.join(20.0)
        assert len(first) == 1  # its answer where it was complete already, else an error
        (again,) = stages.compress([("", "Two bridges opened.")])
        assert not isinstance(again, RecordError)
        assert failures(metrics) == {(thread,): 1}
    finally:
        stages.close()


def test_a_text_that_makes_the_tokenizer_panic_is_set_aside_and_the_others_are_compressed() -> None:
    class Panics(LexicalModel):
        def windows(self, title: str, text: str) -> Any:
            if "odd" in text:
                raise PanicException("byte index 3 is not a char boundary")
            return super().windows(title, text)

        def compress(self, windows: Sequence[Any]) -> Any:
            if any("strange" in window.text for window in windows):
                raise PanicException("attempt to subtract with overflow")
            return super().compress(windows)

    stages = StagedCompressor(Panics(), Metrics(), 4096)
    try:
        odd, strange, good = stages.compress([("", "An odd text."), ("", "A strange text."), ("", "A good text.")])
        assert isinstance(odd, RecordError)
        assert isinstance(strange, RecordError)
        assert {odd.reason, strange.reason} == {"unstorable"}
        assert not isinstance(good, RecordError)
    finally:
        stages.close()


def delete(name: str) -> DocumentDelete:
    return DocumentDelete("default", name, Position(1, 0, 0, datetime.now(UTC)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_commit_that_raises_anything_is_told_to_its_caller_and_the_next_one_is_made(fault: BaseException) -> None:
    once = Once(fault)

    def commit(records: Sequence[BankRecord]) -> CommitReport:
        once()
        return CommitReport(1, len(records), 0, 0, 0.0)

    group = GroupCommit(commit, 10, 1000, 0.01, 1)
    try:
        with pytest.raises(Exception, match=r".*"):  # an Exception, also where the fault is none
            group.submit([delete("a")])
        assert group.submit([delete("b")]).version == 1
    finally:
        group.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_group_that_can_not_be_gathered_fails_its_callers_only(fault: BaseException) -> None:
    once = Once(fault)

    class Odd(GroupCommit):
        def _store(self, group: Any) -> None:
            once()
            super()._store(group)

    metrics = Metrics()
    group = Odd(lambda records: CommitReport(1, len(records), 0, 0, 0.0), 10, 1000, 0.01, 1, metrics)
    try:
        with pytest.raises(Exception, match=r".*"):
            group.submit([delete("a")])
        assert group.submit([delete("b")]).version == 1
        assert failures(metrics) == {("bank-commit",): 1}
    finally:
        group.close()


@pytest.mark.parametrize("where", ["send", "safe"])
@pytest.mark.parametrize("fault", FAULTS)
def test_letters_of_a_round_that_failed_are_sent_again(fault: BaseException, where: str) -> None:
    once, tracker = Once(fault), OffsetTracker()
    kept: list[int] = []

    class Sink:
        def send_all(self, letters: Sequence[tuple[RawRecord, RecordError, int]]) -> list[BrokerError | None]:
            if where == "send":
                once()
            kept.extend(one.offset for one, _, _ in letters)
            return [None for _ in letters]

        def close(self) -> None: ...

    def safe(taken: PolledRecord, error: RecordError) -> None:
        if where == "safe":
            once()
        tracker.finish(taken.ticket)

    metrics = Metrics()
    box = DeadLetterSender(Sink(), safe, metrics)
    try:
        for offset in range(3):
            raw = RawRecord("t", 0, offset, 0, b"k", b"{")
            box.put([(PolledRecord(raw, tracker.start(0, offset), 1), RecordError("not_json", "x"))])
        until(lambda: box.pending == 0)
        assert tracker.committable() == {0: 3}
        assert set(kept) == {0, 1, 2}
        assert failures(metrics) == {("ingest-letters",): 1}
    finally:
        box.close()


@pytest.mark.parametrize("fault", [PanicException("odd"), SystemExit(1), KeyError("odd")])
def test_a_consumers_thread_that_fails_ends_the_consumer_with_the_error(fault: BaseException) -> None:
    rig = Rig([article(0)])

    def prepare(batch: Any) -> Any:
        raise fault

    rig.consumer._work.prepare = prepare  # type: ignore[method-assign]
    rig.consumer.start()
    try:
        until(lambda: not rig.consumer.status().running)
        assert type(fault).__name__ in str(rig.consumer.status().failure)
        assert failures(rig.metrics) == {("ingest-work",): 1}
    finally:
        assert rig.consumer.stop(10.0)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PanicException("index out of bounds"), BankUnavailable),
        (OSError(5, "Input/output error"), BankUnavailable),
        (KeyError("a bug"), KeyError),
    ],
)
def test_a_panic_of_the_bank_is_a_bank_that_can_not_be_used(
    raised: BaseException, expected: type[BaseException]
) -> None:
    with pytest.raises(expected), bank_errors("bank"):
        raise raised


def test_upkeep_that_fails_costs_no_commit_and_the_lock_is_free_after_a_start_that_failed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = BankLayout("m", 4, 8)

    def odd(*_: Any) -> Any:
        raise KeyError("odd")

    with BankWriter(str(tmp_path), layout, maintain_every=1, ann_rows=0) as writer:
        monkeypatch.setattr("services.bank.writer.maintain_table", odd)
        moment = datetime.now(UTC) - timedelta(seconds=1)
        assert writer.commit([DocumentDelete("default", "a", Position(1, 0, 0, moment))]).version > 0
    monkeypatch.setattr("services.bank.writer.WriterFence.take", odd)
    with pytest.raises(KeyError):
        BankWriter(str(tmp_path), layout, ann_rows=0, lock_wait_s=0.0)
    monkeypatch.undo()
    BankWriter(str(tmp_path), layout, ann_rows=0, lock_wait_s=0.0).close()
