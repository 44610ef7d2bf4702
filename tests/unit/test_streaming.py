"""Questions as streams of an engine that batches by itself: places, cancellation, deadlines, faults, and the engine's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from cmt_core.errors import ConfigError
from cmt_core.generation.engine import StreamedAnswer, Written
from cmt_core.generation.query import AnswerStart, Query
from services.metrics import Metrics
from services.query.engine.bank_looks import Retired, SchedulerOptions
from services.query.engine.messages import UNKNOWN, Ask, Failure
from services.query.engine.streaming import StreamAnswerer
from services.testing.memory_bank import InMemoryBank
from services.testing.streamed import StreamedLexical
from tests.unit.test_scheduler import BRIDGE, FERRY, BrokenBank, Inbox, filled, reply
from tests.waiting import until


class GatedLexical(StreamedLexical):
    """Streams that write a word when they are allowed to, and remember how many were open at once."""

    def __init__(self, words: int = 10_000) -> None:
        super().__init__()
        self.allowed = threading.Semaphore(words)
        self.most = 0

    async def begin(self, query: Query, max_new_tokens: int) -> StreamedAnswer:
        if "poison" in query.question:
            raise ValueError("poisoned question")
        return await super().begin(query, max_new_tokens)

    async def _pieces(self, started: AnswerStart, most: int) -> AsyncGenerator[Written, None]:
        async for piece in super()._pieces(started, most):
            self.most = max(self.most, self.open_streams)
            while not self.allowed.acquire(blocking=False):
                await asyncio.sleep(0.005)
            yield piece


@pytest.fixture
def start() -> Iterator[Callable[..., StreamAnswerer]]:
    """Makes engines, and stops them at the end."""
    made: list[tuple[StreamAnswerer, StreamedLexical]] = []

    def make(
        model: StreamedLexical | None = None,
        bank: InMemoryBank | None = None,
        metrics: Metrics | None = None,
        **options: Any,
    ) -> StreamAnswerer:
        model = model or StreamedLexical()
        bank = filled(model) if bank is None else bank
        answerer = StreamAnswerer(model, bank, SchedulerOptions(**options), metrics)
        made.append((answerer, model))
        return answerer

    yield make
    for answerer, model in made:
        if isinstance(model, GatedLexical):
            model.allowed.release(10_000)
        answerer.stop()


def answer(answerer: StreamAnswerer, *asks: Ask) -> list[Any]:
    boxes = [Inbox() for _ in asks]
    for ask, box in zip(asks, boxes, strict=True):
        answerer.submit(ask, box)
    return [box.end() for box in boxes]


def test_modes_read_what_they_say_and_the_weights_are_said_to_be_the_priors(
    start: Callable[..., StreamAnswerer],
) -> None:
    modes = ("memory", "rag", "hybrid", "closed")
    got = [reply(one) for one in answer(start(), *(Ask("Who opened the bridge?", mode) for mode in modes))]  # type: ignore[arg-type]
    assert [one.answer for one in got] == [BRIDGE, BRIDGE, BRIDGE, "I do not know."]
    assert [one.weighted_by for one in got] == ["prior"] * 4
    assert [one.read for one in got] == ["memory", "text", "both", "nothing"]


def test_no_more_answers_are_open_than_there_are_places_and_everyone_is_answered(
    start: Callable[..., StreamAnswerer],
) -> None:
    model = GatedLexical()
    asks = [Ask("Who opened the bridge?"), Ask("Why was the ferry cancelled?")] * 20
    assert [reply(one).answer for one in answer(start(model, max_batch=4), *asks)] == [BRIDGE, FERRY] * 20
    assert model.most == 4


def test_cancelled_questions_close_their_streams_wherever_they_are(start: Callable[..., StreamAnswerer]) -> None:
    model, metrics = GatedLexical(words=1), Metrics()
    answerer = start(model, metrics=metrics, max_batch=1)
    running, waiting, last = Inbox(), Inbox(), Inbox()
    first = answerer.submit(Ask("Why was the ferry cancelled?"), running)
    until(lambda: bool(running.events))
    second = answerer.submit(Ask("Who opened the bridge?"), waiting)
    answerer.submit(Ask("Who opened the bridge in Aarhus?"), last)
    answerer.cancel(second)
    answerer.cancel(first)
    model.allowed.release(10_000)
    assert reply(last.end()).answer == BRIDGE
    assert waiting.events == []
    assert running.text != FERRY
    until(lambda: model.open_streams == 0)
    assert metrics.snapshot().numbers["cmt_query_cancelled_total"][()] == 2


def test_deadline_ends_a_running_and_a_waiting_question(start: Callable[..., StreamAnswerer]) -> None:
    model = GatedLexical(words=1)
    answerer = start(model, max_batch=1)
    running, waiting = Inbox(), Inbox()
    answerer.submit(Ask("Why was the ferry cancelled?", deadline_s=1.0), running)
    until(lambda: bool(running.events))
    answerer.submit(Ask("Who opened the bridge?", deadline_s=0.2), waiting)
    ends = [waiting.end(), running.end()]
    assert [end.kind for end in ends if isinstance(end, Failure)] == ["deadline"] * 2
    until(lambda: model.open_streams == 0)


def test_bad_question_fails_alone(start: Callable[..., StreamAnswerer]) -> None:
    first, bad, last = answer(
        start(GatedLexical()), Ask("Who opened the bridge?"), Ask("poison bridge"), Ask("Why the ferry?")
    )
    assert (reply(first).answer, reply(last).answer) == (BRIDGE, FERRY)
    assert bad == Failure("question", "poisoned question")


def test_unreadable_bank_fails_only_those_who_need_it(start: Callable[..., StreamAnswerer]) -> None:
    needs, closed = answer(start(bank=BrokenBank()), Ask("bridge"), Ask("bridge", "closed"))
    assert needs == Failure("bank", "the disk is gone")
    assert reply(closed).bank_version is None


def test_nothing_relevant_is_i_do_not_know(start: Callable[..., StreamAnswerer]) -> None:
    (got,) = answer(start(), Ask("Zebra quartz?", min_score=0.9))
    assert (reply(got).answer, reply(got).known) == (UNKNOWN, False)


def test_token_limit_and_stop_string_end_an_answer(start: Callable[..., StreamAnswerer]) -> None:
    short, stopped = answer(
        start(), Ask("Who opened the bridge?", max_new_tokens=2), Ask("Who opened the bridge?", stop=("opened",))
    )
    assert (reply(short).answer, reply(short).finish_reason) == ("Mayor Lund", "length")
    assert (reply(stopped).answer, reply(stopped).finish_reason) == ("Mayor Lund", "stop")


def test_lost_engine_hands_its_questions_to_another_one_and_says_so(start: Callable[..., StreamAnswerer]) -> None:
    model = GatedLexical(words=1)
    answerer = start(model, max_batch=1)
    running, waiting = Inbox(), Inbox()
    answerer.submit(Ask("Why was the ferry cancelled?"), running)
    until(lambda: bool(running.events))
    answerer.submit(Ask("Who opened the bridge?"), waiting)
    model.lost = True
    model.allowed.release(10_000)
    ends = [running.end(), waiting.end()]
    assert [end.kind for end in ends if isinstance(end, Failure)] == ["engine"] * 2
    assert answerer.trouble == "the engine has ended"
    (refused,) = answer(answerer, Ask("Who opened the bridge?"))
    assert isinstance(refused, Failure)
    assert refused.kind == "engine"


def test_silent_engine_is_in_trouble_until_it_writes_again(start: Callable[..., StreamAnswerer]) -> None:
    model = GatedLexical(words=1)
    answerer = start(model, stalled_after_s=0.2)
    box = Inbox()
    answerer.submit(Ask("Why was the ferry cancelled?"), box)
    until(lambda: answerer.trouble is not None)
    assert "has written nothing" in (answerer.trouble or "")
    model.allowed.release(10_000)
    assert reply(box.end()).answer == FERRY
    assert answerer.trouble is None


def test_stop_answers_what_is_inside_and_takes_nothing_new(start: Callable[..., StreamAnswerer]) -> None:
    model = GatedLexical(words=1)
    answerer = start(model)
    box = Inbox()
    answerer.submit(Ask("Who opened the bridge?"), box)
    until(lambda: bool(box.events))
    stopping = threading.Thread(target=answerer.stop)
    stopping.start()
    until(lambda: answerer._stopping)
    with pytest.raises(Retired):
        answerer.submit(Ask("Who opened the bridge?"), Inbox())
    model.allowed.release(10_000)
    stopping.join(20)
    assert reply(box.end()).answer == BRIDGE


def test_engine_that_can_not_start_says_why() -> None:
    class Broken(StreamedLexical):
        def start(self) -> None:
            raise ConfigError("vLLM can't start: no such argument")

    with pytest.raises(ConfigError, match="no such argument"):
        StreamAnswerer(Broken(), InMemoryBank())
