"""The scheduler on a small model and a small bank: joining and leaving, isolation, cancellation, deadlines, the past."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from cmt_core.generation.query import AnswerStart, Mode, Query
from services.bank.document_filter import DocumentFilter
from services.bank.records import BankStats
from services.errors import BankUnavailable, ServiceError
from services.metrics import Metrics, Snapshot
from services.metrics_hub import MetricsHub
from services.query.engine.answer_row import query_of
from services.query.engine.hot_swap import HotSwap, revision_of
from services.query.engine.lazy_reader import LazyReader
from services.query.engine.messages import UNKNOWN, Ask, Delta, Event, Failure, HitList, Reply
from services.query.engine.scheduler import Retired, Scheduler, SchedulerOptions
from services.query.gateway.ingest_numbers import IngestNumbers
from services.testing.lexical import LexicalBatch, LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.serving import day, publish
from tests.waiting import until

BRIDGE = "Mayor Lund opened the bridge in Aarhus."
FERRY = "The ferry to Samso was cancelled by a storm."


class SteppedBatch(LexicalBatch):
    """A running batch that takes a step only when it is allowed to, and remembers who was in it."""

    def __init__(self, model: SteppedModel) -> None:
        super().__init__(model)
        self._stepped = model

    def join(self, queries: Sequence[Query]) -> list[AnswerStart]:
        if any("poison" in query.question for query in queries):
            raise ValueError("poisoned question")
        started = super().join(queries)
        self._stepped.sizes.append(len(self))
        return started

    def step(self) -> dict[int, list[int | None]]:
        self._stepped.allowed.acquire()
        if self._stepped.broken:
            raise RuntimeError("the device is gone")
        return super().step()


class SteppedModel(LexicalModel):
    """The lexical model whose batches wait for `allow`."""

    def __init__(self, steps: int = 10_000) -> None:
        super().__init__()
        self.allowed = threading.Semaphore(steps)
        self.sizes: list[int] = []
        self.broken = False

    def answer_batch(self) -> LexicalBatch:
        return SteppedBatch(self)

    def allow(self, steps: int = 10_000) -> None:
        self.allowed.release(steps)


class BrokenBank(InMemoryBank):
    """A bank whose disk is gone."""

    def search(self, *arguments: Any, **options: Any) -> Any:
        raise BankUnavailable("the disk is gone")

    def stats(self) -> BankStats:
        raise BankUnavailable("the disk is gone")


class Inbox:
    """Collects the events of one question."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Delta):
            self._ended.set()

    def end(self, within_s: float = 20.0) -> Event:
        assert self._ended.wait(within_s), "no answer came"
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))


def filled(model: LexicalModel, bank: InMemoryBank | None = None) -> InMemoryBank:
    bank = bank if bank is not None else InMemoryBank()
    for doc_id, text, number in (("bridge", BRIDGE, 1), ("ferry", FERRY, 3)):
        publish(bank, model, doc_id, text, source=doc_id.title(), published_at=day(number), ingested_at=day(number))
    return bank


@pytest.fixture
def start() -> Iterator[Callable[..., Scheduler]]:
    """Makes schedulers, and stops them at the end."""
    made: list[tuple[Scheduler, LexicalModel]] = []

    def make(
        model: LexicalModel | None = None,
        bank: InMemoryBank | None = None,
        metrics: Metrics | None = None,
        **options: Any,
    ) -> Scheduler:
        model = model or LexicalModel()
        scheduler = Scheduler(model, filled(model) if bank is None else bank, SchedulerOptions(**options), metrics)
        made.append((scheduler, model))
        return scheduler

    yield make
    for scheduler, model in made:
        if isinstance(model, SteppedModel):
            model.allow()
        scheduler.stop()


def answer(scheduler: Scheduler, *asks: Ask) -> list[Event]:
    boxes = [Inbox() for _ in asks]
    for ask, box in zip(asks, boxes, strict=True):
        scheduler.submit(ask, box)
    return [box.end() for box in boxes]


def reply(event: Event) -> Reply:
    assert isinstance(event, Reply), event
    return event


def test_answer_comes_from_the_memories_that_the_bank_holds_piece_by_piece(start: Callable[..., Scheduler]) -> None:
    box = Inbox()
    start().submit(Ask("Who opened the bridge in Aarhus?"), box)
    got = reply(box.end())
    assert got.answer == box.text == BRIDGE
    assert len(box.events) == 1 + len(BRIDGE.split())
    assert [source.doc_id for source in got.sources] == ["bridge", "ferry"]
    weights = [source.weight or 0.0 for source in got.sources]
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] > weights[1]
    assert got.bank_version == 2


class UndecidedBatch(LexicalBatch):
    """A running batch that shows nothing of an answer for two steps, and then all of it at once."""

    def __init__(self, model: LexicalModel) -> None:
        super().__init__(model)
        self._shown_after: dict[int, int] = {}

    def join(self, queries: Sequence[Query]) -> list[AnswerStart]:
        started = super().join(queries)
        for one, query in zip(started, queries, strict=True):
            self._rows[one.row].words.insert(0, self.text([token for token in one.tokens if token is not None]))
            self._shown_after[one.row] = 2 * (query.candidates > 1)
        return [dataclasses.replace(one, tokens=[]) for one in started]

    def step(self) -> dict[int, list[int | None]]:
        known: dict[int, list[int | None]] = {}
        for number in self._rows:
            self._shown_after[number] -= 1
            known[number] = []
            while self._shown_after[number] <= 0 and None not in known[number]:
                known[number].append(self.step_of(number))
        return known


class UndecidedModel(LexicalModel):
    def answer_batch(self) -> LexicalBatch:
        return UndecidedBatch(self)


@pytest.mark.parametrize("mode", ["memory", "auto", "rag"])
def test_answer_whose_candidates_are_compared_comes_at_once(start: Callable[..., Scheduler], mode: Mode) -> None:
    whole, cut = Inbox(), Inbox()
    scheduler = start(UndecidedModel(), answer_candidates=4)
    scheduler.submit(Ask("Who opened the bridge in Aarhus?", mode), whole)
    scheduler.submit(Ask("Who opened the bridge in Aarhus?", mode, max_new_tokens=3), cut)
    got, short = reply(whole.end()), reply(cut.end())
    assert (got.answer, got.finish_reason, got.completion_tokens) == (BRIDGE, "stop", len(BRIDGE.split()))
    assert whole.text == BRIDGE
    assert (short.answer, short.finish_reason, short.completion_tokens) == ("Mayor Lund opened", "length", 3)
    assert scheduler.running == 0


def test_each_mode_reads_what_it_says(start: Callable[..., Scheduler]) -> None:
    question = "Who opened the bridge?"
    modes = ("memory", "rag", "hybrid", "closed")
    memory, rag, hybrid, closed = (
        reply(one)
        for one in answer(start(), *(Ask(question, mode) for mode in modes))  # type: ignore[arg-type]
    )
    assert [one.answer for one in (memory, rag, hybrid, closed)] == [BRIDGE, BRIDGE, BRIDGE, "I do not know."]
    assert memory.prompt_tokens == closed.prompt_tokens < hybrid.prompt_tokens < rag.prompt_tokens
    assert hybrid.prompt_tokens == memory.prompt_tokens + len(BRIDGE.split())
    assert closed.sources == ()


def test_question_joins_while_another_is_written_and_a_short_one_leaves_first(start: Callable[..., Scheduler]) -> None:
    model = SteppedModel(steps=0)
    scheduler = start(model)
    long, late = Inbox(), Inbox()
    scheduler.submit(Ask("Why was the ferry cancelled?"), long)
    model.allow(2)
    until(lambda: len(long.events) >= 3)
    scheduler.submit(Ask("Who opened the bridge?", max_new_tokens=2), late)
    until(lambda: len(scheduler._ready) == 1)  # looked up; the running batch waits for its next step
    model.allow(2)
    assert reply(late.end()).answer == "Mayor Lund"
    assert not any(isinstance(event, Reply) for event in long.events)
    model.allow()
    assert reply(long.end()).answer == FERRY
    assert model.sizes == [1, 2]


def test_batch_never_grows_over_its_limit_and_everyone_is_answered(start: Callable[..., Scheduler]) -> None:
    model = SteppedModel()
    asks = [Ask("Who opened the bridge?"), Ask("Why was the ferry cancelled?")] * 20
    got = [reply(event).answer for event in answer(start(model, max_batch=4), *asks)]
    assert got == [BRIDGE, FERRY] * 20
    assert max(model.sizes) == 4


def test_cancelled_question_leaves_the_batch_and_the_queue(start: Callable[..., Scheduler]) -> None:
    model, metrics = SteppedModel(steps=0), Metrics()
    scheduler = start(model, metrics=metrics, max_batch=1)
    running, waiting, last = Inbox(), Inbox(), Inbox()
    first = scheduler.submit(Ask("Why was the ferry cancelled?"), running)
    until(lambda: bool(running.events))
    second = scheduler.submit(Ask("Who opened the bridge?"), waiting)
    scheduler.submit(Ask("Who opened the bridge in Aarhus?"), last)
    scheduler.cancel(second)
    scheduler.cancel(first)
    model.allow()
    assert reply(last.end()).answer == BRIDGE
    assert waiting.events == []
    assert running.text != FERRY
    assert metrics.snapshot().numbers["cmt_query_cancelled_total"][()] == 2


def test_deadline_ends_a_running_and_a_waiting_question(start: Callable[..., Scheduler]) -> None:
    model = SteppedModel(steps=0)
    scheduler = start(model, max_batch=1)
    running, waiting = Inbox(), Inbox()
    scheduler.submit(Ask("Why was the ferry cancelled?", deadline_s=0.3), running)
    until(lambda: bool(running.events))
    scheduler.submit(Ask("Who opened the bridge?", deadline_s=0.2), waiting)
    ended = waiting.end()
    assert isinstance(ended, Failure)
    assert ended.kind == "deadline"
    time.sleep(0.3)
    model.allow(1)
    ended = running.end()
    assert isinstance(ended, Failure)
    assert ended.kind == "deadline"


def test_bad_question_fails_alone(start: Callable[..., Scheduler]) -> None:
    scheduler = start(SteppedModel())
    first, bad, last = answer(scheduler, Ask("Who opened the bridge?"), Ask("poison bridge"), Ask("Why the ferry?"))
    assert (reply(first).answer, reply(last).answer) == (BRIDGE, FERRY)
    assert bad == Failure("question", "poisoned question")


def test_broken_device_fails_those_who_run_and_the_next_question_is_answered(start: Callable[..., Scheduler]) -> None:
    model = SteppedModel()
    scheduler = start(model)
    model.broken = True
    (ended,) = answer(scheduler, Ask("Who opened the bridge?"))
    assert ended == Failure("internal", "internal error: RuntimeError")
    model.broken = False
    (again,) = answer(scheduler, Ask("Who opened the bridge?"))
    assert reply(again).answer == BRIDGE


def test_unreadable_bank_fails_only_those_who_need_it(start: Callable[..., Scheduler]) -> None:
    needs, closed = answer(start(bank=BrokenBank()), Ask("bridge"), Ask("bridge", "closed"))
    assert needs == Failure("bank", "the disk is gone")
    assert reply(closed).bank_version is None


def test_question_about_the_past_sees_the_bank_of_then(start: Callable[..., Scheduler]) -> None:
    question = "Why was the ferry cancelled?"
    then, now = (reply(one) for one in answer(start(), Ask(question, as_of=day(2)), Ask(question)))
    assert [source.doc_id for source in then.sources] == ["bridge"]
    assert now.answer == FERRY


def test_moment_before_the_first_document_is_told_when_that_came(start: Callable[..., Scheduler]) -> None:
    before, after = (
        reply(one)
        for one in answer(start(), Ask("bridge", as_of=day(1) - timedelta(days=30)), Ask("zebra", min_score=0.99))
    )
    assert (before.known, after.known) == (False, False)
    assert before.notes == (
        f"the bank was still empty at that moment: its first document came at {day(1).isoformat()}",
    )
    assert "holds nothing that is relevant" in after.notes[0]


@pytest.mark.parametrize(
    ("ask", "follows", "said"),
    [
        (Ask("Who?", "closed"), False, "Answer in one sentence."),
        (Ask("Who?", "closed", instructions="Be brief."), False, "Be brief."),  # a client's own words stand
        (Ask("Who?", "closed"), True, ""),  # a chat template has its own
        (Ask("Who?", "memory"), False, ""),
    ],
)
def test_model_without_a_memory_is_asked_for_a_sentence(ask: Ask, follows: bool, said: str) -> None:
    instructions = query_of(ask, HitList(), follows).instructions
    assert said in instructions
    assert bool(said) == bool(instructions)


def test_filters_narrow_what_is_read(start: Callable[..., Scheduler]) -> None:
    question = "What of bridge and ferry?"
    wanted = [
        DocumentFilter(sources=("Ferry",)),
        DocumentFilter(doc_ids=("bridge",)),
        DocumentFilter(published_after=day(2)),
        DocumentFilter(published_before=day(2)),
    ]
    got = [reply(one) for one in answer(start(), *(Ask(question, wanted=one) for one in wanted))]
    assert [[source.doc_id for source in one.sources] for one in got] == [["ferry"], ["bridge"], ["ferry"], ["bridge"]]


def test_nothing_relevant_is_i_do_not_know_without_asking_the_model(start: Callable[..., Scheduler]) -> None:
    model, metrics = SteppedModel(steps=0), Metrics()
    scheduler = start(model, metrics=metrics, min_score=0.4)
    unknown, empty = answer(
        scheduler, Ask("Which comet was seen over the bridge in Skagen?"), Ask("bridge", namespace="x")
    )
    for one in (reply(unknown), reply(empty)):
        assert (one.answer, one.known, one.sources) == (UNKNOWN, False, ())
    assert "best score 0." in reply(unknown).notes[0]
    assert metrics.snapshot().numbers["cmt_query_unknown_total"][()] == 2
    model.allow()
    (asked,) = answer(scheduler, Ask("Which comet was seen over the bridge in Skagen?", min_score=0.0))
    assert reply(asked).answer == BRIDGE


def test_better_lookup_counts_and_every_window_comes_once(start: Callable[..., Scheduler]) -> None:
    lookups = ("And why?", "Why was the ferry to Samso cancelled by a storm?")
    (got,) = answer(start(min_score=0.3), Ask("And why?", lookups=lookups))
    assert [source.doc_id for source in reply(got).sources] == ["ferry"]


def test_stop_string_ends_an_answer_and_its_row(start: Callable[..., Scheduler]) -> None:
    box = Inbox()
    start().submit(Ask("Who opened the bridge?", stop=("the bri", "in Aar")), box)
    got = reply(box.end())
    assert (got.answer, got.finish_reason, box.text) == ("Mayor Lund opened", "stop", "Mayor Lund opened")
    assert got.completion_tokens == 5  # the row left with the word that completed the stop string


def test_token_limits_of_neighbours_are_kept_apart(start: Callable[..., Scheduler]) -> None:
    short, long = (reply(e) for e in answer(start(), Ask("bridge Aarhus", max_new_tokens=2), Ask("bridge Aarhus")))
    assert (short.answer, short.finish_reason) == ("Mayor Lund", "length")
    assert (long.answer, long.finish_reason) == (BRIDGE, "stop")


def test_too_long_a_prompt_is_refused_before_it_is_read(start: Callable[..., Scheduler]) -> None:
    scheduler = start(max_prompt_tokens=8)
    short, long = answer(scheduler, Ask("Who opened the bridge?"), Ask("Who opened the bridge?", "rag"))
    assert reply(short).answer == BRIDGE
    assert isinstance(long, Failure)
    assert long.kind == "too_long"


def test_answers_are_measured(start: Callable[..., Scheduler]) -> None:
    metrics = Metrics()
    answer(start(metrics=metrics), Ask("bridge"), Ask("ferry"))
    snapshot = metrics.snapshot()
    assert sum(snapshot.histograms["cmt_query_first_token_seconds"][("memory",)][0]) == 2
    assert snapshot.numbers["cmt_query_prompt_tokens_total"][("memory",)] == 2


def test_exchange_of_the_model_loses_no_question_and_failing_to_load_changes_nothing() -> None:
    gate = threading.Event()

    def load(target: Mapping[str, str]) -> Scheduler:
        if target["checkpoint"] == "missing":
            raise ServiceError("checkpoint `missing` was not found")
        if target["checkpoint"] == "new":
            gate.wait(10)
        model = LexicalModel(model_id=target["checkpoint"])
        return Scheduler(model, filled(model), SchedulerOptions(max_batch=2))

    swap = HotSwap(load, {"checkpoint": "old"})
    boxes: list[Inbox] = []
    stopped = threading.Event()

    def keep_asking() -> None:
        while not stopped.is_set():
            boxes.append(Inbox())
            swap.submit(Ask("Who opened the bridge?"), boxes[-1])
            time.sleep(0.001)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    loading = swap.switch({"checkpoint": "new"})
    assert loading is not None
    until(lambda: len(boxes) > 20)
    assert swap.current.model_id == "old"
    gate.set()
    loading.join(10)
    before = len(boxes)
    until(lambda: len(boxes) > before + 20)
    failing = swap.switch({"checkpoint": "missing"})
    assert failing is not None
    failing.join(10)
    stopped.set()
    asking.join(10)
    answers = [reply(box.end()) for box in boxes]
    assert {one.answer for one in answers} == {BRIDGE}
    assert {one.model_id for one in answers} == {"old", "new"}
    assert answers[-1].model_id == "new"
    assert swap.error == "checkpoint `missing` was not found"
    assert swap.revision == revision_of({"checkpoint": "new"})
    swap.current.stop()
    with pytest.raises(Retired):
        swap.current.submit(Ask("late"), Inbox())


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


def test_prompts_are_read_a_few_at_a_time_and_the_first_words_do_not_wait_for_all(
    start: Callable[..., Scheduler],
) -> None:
    model = SteppedModel(steps=0)
    scheduler = start(model, max_batch=16, join_at_once=2)
    boxes = [Inbox() for _ in range(6)]
    for box in boxes:
        scheduler.submit(Ask("Why was the ferry cancelled?"), box)
    until(lambda: len(model.sizes) == 1)
    assert model.sizes[0] <= 2
    model.allow()
    assert {reply(box.end()).answer for box in boxes} == {FERRY}


class ChattingModel(LexicalModel):
    """The lexical model as one that is read in a chat template: it follows system messages and has its own longest answer."""

    answer_tokens = 3
    min_score = 0.9
    follows_instructions = True


def test_longest_answer_and_least_score_are_the_models_where_nobody_says(start: Callable[..., Scheduler]) -> None:
    question = "Who opened the bridge in Aarhus?"
    scheduler = start(ChattingModel(), min_score=0.0)
    short, asked = (reply(one) for one in answer(scheduler, Ask(question), Ask(question, max_new_tokens=5)))
    assert (short.completion_tokens, short.finish_reason) == (3, "length")
    assert asked.completion_tokens == 5
    assert reply(*answer(start(ChattingModel(), min_score=None), Ask("Aarhus?", min_score=None))).answer == UNKNOWN
    assert reply(*answer(start(ChattingModel(), min_score=None), Ask("Aarhus?", min_score=0.1))).known


def test_system_message_is_said_to_be_without_effect_only_where_it_is(start: Callable[..., Scheduler]) -> None:
    ask = Ask("Who opened the bridge in Aarhus?", instructions="Answer in French.")
    assert "no effect" in reply(*answer(start(), ask)).notes[0]
    assert reply(*answer(start(ChattingModel(), min_score=0.0), ask)).notes == ()


class LookingModel(LexicalModel):
    """Has four documents found for each one that it reads."""

    default_top_k = 2

    def looked_at(self, k: int) -> int:
        return 4 * k


@pytest.fixture
def misleading() -> tuple[LookingModel, InMemoryBank]:
    """A bank whose search finds shorter documents before the one that tells most."""
    model, bank = LookingModel(), InMemoryBank()
    for number in range(4):
        publish(bank, model, f"rumour-{number}", "Which bridge in Aarhus opened?")
    publish(bank, model, "bridge", f"{BRIDGE} {' '.join(f'word{n}' for n in range(40))}")
    return model, bank


WHICH = "Mayor Lund opened which bridge in Aarhus?"


def test_sources_are_those_read_most_of_all_that_were_looked_at(
    start: Callable[..., Scheduler], misleading: tuple[LookingModel, InMemoryBank]
) -> None:
    scheduler = start(*misleading)
    shown = scheduler.search(Ask(WHICH, top_k=3))
    assert isinstance(shown, HitList)
    assert len(shown.hits) == 3  # a search is for what was asked for
    asks = [Ask(WHICH, mode, min_score=-1.0) for mode in ("memory", "auto", "rag")]  # type: ignore[arg-type]
    memory, auto, rag = (reply(one) for one in answer(scheduler, *asks))
    for got in (memory, auto):
        assert len(got.sources) == 2
        assert max(got.sources, key=lambda source: source.weight or 0.0).doc_id == "bridge"
        assert sum(source.weight or 0.0 for source in got.sources) < 1 - 1e-6  # the rest fell on what is no source
    assert len(rag.sources) == 2


def test_citations_number_the_sources_that_are_shown(
    start: Callable[..., Scheduler], misleading: tuple[LookingModel, InMemoryBank]
) -> None:
    (got,) = (reply(one) for one in answer(start(*misleading), Ask(WHICH, citations=True, min_score=-1.0)))
    assert [source.doc_id for source in got.sources] == ["rumour-0", "bridge"]
    assert got.answer == BRIDGE.replace(".", " [2].")
