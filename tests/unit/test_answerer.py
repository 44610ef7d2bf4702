"""The answerer on a small model and a small bank: grouping, isolation of bad questions, sources, the past."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pytest

from services.errors import BankUnavailable
from services.lexical import LexicalAnswer, LexicalModel
from services.metrics import Metrics, Snapshot
from services.metrics_hub import MetricsHub
from services.query.engine import Answerer, Ask, Failure, Reply
from services.query.ingest_numbers import IngestNumbers
from services.query.lazy_reader import LazyReader
from services.query.memory_bank import InMemoryBank, StoredStats, StoredWindow

BRIDGE = "Mayor Lund opened the bridge in Aarhus."
FERRY = "The ferry to Samso was cancelled by a storm."


class RecordingModel(LexicalModel):
    """The lexical model that refuses questions with the word `poison` and remembers the size of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, int]] = []

    def answer(
        self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], *, max_new_tokens: int
    ) -> list[LexicalAnswer]:
        self._take("cmt", questions)
        return super().answer(questions, memories, max_new_tokens=max_new_tokens)

    def answer_rag(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> list[LexicalAnswer]:
        self._take("cmt-rag", questions)
        return super().answer_rag(questions, passages, max_new_tokens=max_new_tokens)

    def _take(self, mode: str, questions: Sequence[str]) -> None:
        if any("poison" in question for question in questions):
            raise ValueError("poisoned question")
        self.batches.append((mode, len(questions)))


class BrokenBank(InMemoryBank):
    """A bank whose disk is gone."""

    def search(
        self, keys: npt.NDArray[np.float32], k: int, namespace: str, as_of: datetime | None
    ) -> list[list[StoredWindow]]:
        raise BankUnavailable("the disk is gone")

    def stats(self) -> StoredStats:
        raise BankUnavailable("the disk is gone")


def day(number: int) -> datetime:
    return datetime(2026, 5, number, tzinfo=UTC)


def filled(model: LexicalModel, bank: InMemoryBank | None = None) -> InMemoryBank:
    bank = bank if bank is not None else InMemoryBank()
    for doc_id, text, number in (("bridge", BRIDGE, 1), ("ferry", FERRY, 3)):
        bank.add(model.query_keys([text])[0], StoredWindow(doc_id, text, model.pack(text), ingested_at=day(number)))
    return bank


def answerer(model: LexicalModel | None = None, bank: InMemoryBank | None = None) -> Answerer:
    model = model or LexicalModel()
    return Answerer(model, filled(model) if bank is None else bank)


def replies(outcomes: Sequence[Reply | Failure]) -> list[Reply]:
    assert all(isinstance(one, Reply) for one in outcomes), outcomes
    return [one for one in outcomes if isinstance(one, Reply)]


def test_answer_comes_from_the_memories_that_the_bank_holds() -> None:
    (reply,) = replies(answerer().answer([Ask("Who opened the bridge in Aarhus?")]))
    assert reply.answer == BRIDGE
    assert [source.doc_id for source in reply.sources] == ["bridge", "ferry"]
    weights = [source.weight or 0.0 for source in reply.sources]
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] > weights[1]
    assert reply.bank_version == 2


def test_mixed_batch_keeps_order_and_generates_each_mode_together() -> None:
    model = RecordingModel()
    bridge, ferry = "Who opened the bridge?", "Why was the ferry cancelled?"
    asks = [Ask(bridge), Ask(ferry, "cmt-rag"), Ask(bridge, "cmt-closed"), Ask(ferry), Ask(bridge, "cmt-rag")]
    found = replies(answerer(model).answer(asks))
    assert [reply.answer for reply in found] == [BRIDGE, FERRY, "I do not know.", FERRY, BRIDGE]
    assert sorted(model.batches) == [("cmt", 2), ("cmt-rag", 2)]


def test_text_in_the_prompt_costs_tokens_that_memories_do_not() -> None:
    question = "Who opened the bridge?"
    memory, text = replies(answerer().answer([Ask(question), Ask(question, "cmt-rag")]))
    assert memory.answer == text.answer
    assert memory.prompt_tokens < text.prompt_tokens


def test_closed_book_never_looks_into_the_bank() -> None:
    (reply,) = replies(answerer(bank=BrokenBank()).answer([Ask("Who opened the bridge?", "cmt-closed")]))
    assert reply.sources == ()
    assert reply.bank_version is None


def test_bad_question_fails_alone() -> None:
    asks = [Ask("Who opened the bridge?"), Ask("poison"), Ask("Why was the ferry cancelled?")]
    first, bad, last = answerer(RecordingModel()).answer(asks)
    assert isinstance(first, Reply)
    assert isinstance(last, Reply)
    assert (first.answer, last.answer) == (BRIDGE, FERRY)
    assert bad == Failure("question", "ValueError: poisoned question")


def test_unreadable_bank_fails_only_those_who_need_it() -> None:
    needs, closed = answerer(bank=BrokenBank()).answer([Ask("bridge"), Ask("bridge", "cmt-closed")])
    assert needs == Failure("bank", "the disk is gone")
    assert isinstance(closed, Reply)


def test_question_about_the_past_sees_the_bank_of_then() -> None:
    question = "Why was the ferry cancelled?"
    then, now = replies(answerer().answer([Ask(question, as_of=day(2)), Ask(question)]))
    assert [source.doc_id for source in then.sources] == ["bridge"]
    assert now.answer == FERRY


def test_top_k_of_one_question_does_not_change_its_neighbour() -> None:
    one, default = replies(answerer().answer([Ask("bridge", top_k=1), Ask("bridge")]))
    assert (len(one.sources), len(default.sources)) == (1, 2)


def test_empty_bank_is_answered_without_memory_and_says_so() -> None:
    (reply,) = replies(answerer(bank=InMemoryBank()).answer([Ask("Who opened the bridge?")]))
    assert reply.sources == ()
    assert "nothing" in reply.notes[0]


def test_token_limits_of_neighbours_are_kept_apart() -> None:
    short, long = replies(answerer().answer([Ask("bridge Aarhus", max_new_tokens=2), Ask("bridge Aarhus")]))
    assert (short.answer, short.finish_reason) == ("Mayor Lund", "length")
    assert (long.answer, long.finish_reason) == (BRIDGE, "stop")


def test_batch_is_measured() -> None:
    model, metrics = LexicalModel(), Metrics()
    Answerer(model, filled(model), metrics=metrics).answer([Ask("bridge"), Ask("ferry")])
    snapshot = metrics.snapshot()
    assert sum(snapshot.histograms["cmt_query_batch_questions"][()][0]) == 1
    assert snapshot.numbers["cmt_query_prompt_tokens_total"][("cmt",)] == 2


def test_bank_that_appears_later_is_opened_then() -> None:
    now, bank = [0.0], InMemoryBank()
    tries: list[float] = []

    def open_bank() -> InMemoryBank:
        tries.append(now[0])
        if len(tries) == 1:
            raise BankUnavailable("no bank yet")
        return bank

    reader = LazyReader(open_bank, retry_s=1.0, clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(BankUnavailable, match="no bank yet"):
            reader.stats()
    now[0] = 1.5
    assert reader.stats().rows == 0
    assert tries == [0.0, 1.5]


def test_silent_process_keeps_counters_and_loses_gauges() -> None:
    now = [0.0]
    hub = MetricsHub(stale_s=10.0, clock=lambda: now[0])
    hub.push("ingest", ingest(records=5, lag=7))
    assert "cmt_ingest_lag_records" in hub.snapshots()[0].numbers
    now[0] = 11.0
    (stale,) = hub.snapshots()
    assert "cmt_ingest_lag_records" not in stale.numbers
    assert stale.numbers["cmt_ingest_records_total"] == {("stored",): 5.0}


def ingest(records: int, lag: int, freshness_s: Sequence[float] = ()) -> Snapshot:
    metrics = Metrics()
    metrics.count("cmt_ingest_records_total", records, outcome="stored")
    metrics.gauge("cmt_ingest_lag_records", lag, partition="0")
    for value in freshness_s:
        metrics.observe("cmt_ingest_freshness_seconds", value)
    return metrics.snapshot()


def test_ingest_rate_and_freshness_are_of_the_window_and_survive_a_restart() -> None:
    now = [0.0]
    numbers = IngestNumbers(window_s=10.0, clock=lambda: now[0])
    assert numbers.update([]).lag_records is None
    now[0] = 2.0
    view = numbers.update([ingest(20, 3, [1.0, 2.0])])
    assert (view.records_per_s, view.lag_records, view.freshness_s) == (10.0, 3, 1.5)
    now[0] = 4.0
    assert numbers.update([ingest(2, 1)]).records_per_s == 0.0
    now[0] = 6.0
    assert numbers.update([ingest(4, 0)]).records_per_s == 1.0
