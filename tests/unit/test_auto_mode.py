"""Mode `auto` in the engine: what memory says and its sources don't is asked again with the best source's text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cmt_core.generation.query import AnswerStart, Query, Sampling
from services.metrics import Metrics
from services.query.engine.messages import Ask, Delta, Reply
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.testing.lexical import LexicalBatch, LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.serving import day, publish
from tests.unit.test_scheduler import Inbox

BRIDGE = "Mayor Lund opened the bridge in Aarhus. It cost 46 million. Anna Storm built it."
FERRY = "The ferry to Samso was cancelled by a storm."


class Forgetful(LexicalModel):
    """Writes its memories' words, some of them wrong, and texts as they are; remembers what it was asked."""

    def __init__(self, garbled: dict[str, str], *, sentences: bool = False) -> None:
        super().__init__()
        self.garbled = garbled
        self.follows_instructions = sentences
        self.asked: list[Query] = []

    def answer_batch(self) -> LexicalBatch:
        return _ForgetfulBatch(self)


class _ForgetfulBatch(LexicalBatch):
    def __init__(self, model: Forgetful) -> None:
        super().__init__(model)
        self._forgetful = model

    def _start(self, query: Query, texts: Sequence[str]) -> AnswerStart:
        self._forgetful.asked.append(query)
        whole = texts[0]
        for said, wrong in self._forgetful.garbled.items():
            whole = whole.replace(said, wrong) if query.memories else whole
        rest = whole.removeprefix(query.begun).strip()
        started = super()._start(query, [rest])
        row = self._rows[started.row]
        row.words = rest.split()
        weights = [0.9, 0.1][: len(query.memories)] if query.memories else started.weights
        return AnswerStart(started.row, started.prompt_tokens, weights, [self._number(row.next())])


@pytest.fixture
def engine() -> Iterator[Callable[..., tuple[Scheduler, Metrics]]]:
    made: list[Scheduler] = []

    def start(model: LexicalModel, **options: Any) -> tuple[Scheduler, Metrics]:
        bank, metrics = InMemoryBank(), Metrics()
        for doc_id, text in (("bridge", BRIDGE), ("ferry", FERRY)):
            publish(bank, model, doc_id, text, title=doc_id.title(), ingested_at=day(1))
        made.append(Scheduler(model, bank, SchedulerOptions(**options), metrics))
        return made[-1], metrics

    yield start
    for scheduler in made:
        scheduler.stop()


def asked(scheduler: Scheduler, **fields: Any) -> tuple[Inbox, Reply]:
    box = Inbox()
    scheduler.submit(Ask("Who opened the bridge in Aarhus?", "auto", **fields), box)
    reply = box.end()
    assert isinstance(reply, Reply), reply
    return box, reply


def text_reads(metrics: Metrics) -> float:
    return sum(metrics.snapshot().numbers.get("cmt_query_text_reads_total", {}).values())


def test_a_grounded_answer_is_the_memorys(engine: Callable[..., Any]) -> None:
    model = Forgetful({})
    scheduler, metrics = engine(model)
    box, reply = asked(scheduler)
    assert reply.answer == box.text == BRIDGE
    assert (reply.read, reply.grounded, reply.mode) == ("memory", True, "auto")
    assert reply.sources[0].place == (0, len(BRIDGE) - 1)  # in the text, not behind its title; the full stop is no word
    assert [query.mode for query in model.asked] == ["memory"]
    assert text_reads(metrics) == 0


def test_a_short_answer_that_stands_nowhere_is_read_again_from_text(engine: Callable[..., Any]) -> None:
    model = Forgetful({"Lund": "Lond"})
    scheduler, metrics = engine(model)
    box, reply = asked(scheduler)
    assert reply.answer == box.text == f"Bridge {BRIDGE}"  # title and text: nothing of the first answer was sent
    assert len([event for event in box.events if isinstance(event, Delta)]) > 1
    assert (reply.read, reply.grounded) == ("text", True)
    assert [query.mode for query in model.asked] == ["memory", "rag"]
    assert model.asked[1].passages == [f"Bridge\n{BRIDGE}"]
    assert not model.asked[1].memories
    assert [source.weight for source in reply.sources] == [0.9, 0.1]  # what the memory attended to
    assert reply.completion_tokens == 2 * len(BRIDGE.split()) + 1
    assert text_reads(metrics) == 1


def test_sentences_that_stand_there_are_sent_and_the_text_goes_on_behind_them(engine: Callable[..., Any]) -> None:
    model = Forgetful({"46": "four,600"}, sentences=True)
    scheduler, _ = engine(model)
    box, reply = asked(scheduler)
    assert box.events[0] == Delta("Mayor Lund opened the bridge in Aarhus.")
    assert model.asked[1].begun == "Mayor Lund opened the bridge in Aarhus."
    assert box.text == reply.answer
    assert reply.answer.startswith("Mayor Lund opened the bridge in Aarhus. ")
    assert "46 million" in reply.answer
    assert "four,600" not in reply.answer
    assert reply.read == "text"


def test_sources_are_named_in_the_answer_where_asked_for(engine: Callable[..., Any]) -> None:
    scheduler, _ = engine(Forgetful({"46": "47"}, sentences=True))
    for mode in ("memory", "auto"):
        box = Inbox()
        scheduler.submit(Ask("Who opened the bridge in Aarhus?", mode, citations=True), box)  # type: ignore[arg-type]
        reply = box.end()
        assert isinstance(reply, Reply)
        assert reply.answer == box.text
        assert reply.answer.startswith("Mayor Lund opened the bridge in Aarhus [1]. ")
        assert ("47 million. Anna" in reply.answer) == (mode == "memory")  # not grounded: no source is named
        assert reply.answer.endswith("Anna Storm built it [1].")
        assert reply.grounded == (mode == "auto")


def test_without_room_for_text_the_memorys_answer_stays_and_is_marked(engine: Callable[..., Any]) -> None:
    model = Forgetful({"Lund": "Lond"})
    scheduler, metrics = engine(model, max_prompt_tokens=10)
    box, reply = asked(scheduler)
    assert reply.answer == box.text == BRIDGE.replace("Lund", "Lond")
    assert (reply.read, reply.grounded) == ("memory", False)
    assert text_reads(metrics) == 0


def test_memory_alone_says_what_it_says_and_is_marked(engine: Callable[..., Any]) -> None:
    scheduler, _ = engine(Forgetful({"Lund": "Lond"}))
    box = Inbox()
    scheduler.submit(Ask("Who opened the bridge in Aarhus?", "memory"), box)
    reply = box.end()
    assert isinstance(reply, Reply)
    assert len(box.events) == 1 + len(BRIDGE.split())  # word by word
    assert (reply.read, reply.grounded, reply.sources[0].place) == ("memory", False, None)


def test_length_and_seed_hold_for_both_readings_together(engine: Callable[..., Any]) -> None:
    model = Forgetful({"46": "47"}, sentences=True)
    scheduler, _ = engine(model)
    _, reply = asked(scheduler, max_new_tokens=12, sampling=Sampling(0.0, 1.0, 5))
    assert reply.finish_reason == "length"
    assert model.asked[1].sampling == model.asked[0].sampling
    assert reply.answer.split()[:7] == ["Mayor", "Lund", "opened", "the", "bridge", "in", "Aarhus."]
    assert len(reply.answer.split()) <= 12


def test_many_at_once_keep_their_own_answers(engine: Callable[..., Any]) -> None:
    scheduler, metrics = engine(Forgetful({"Lund": "Lond"}), max_batch=4, join_at_once=2)
    boxes = [Inbox() for _ in range(12)]
    for number, box in enumerate(boxes):
        question = "Who opened the bridge in Aarhus?" if number % 2 else "Why was the ferry to Samso cancelled?"
        scheduler.submit(Ask(question, "auto"), box)
    replies = [box.end() for box in boxes]
    assert all(isinstance(one, Reply) for one in replies)
    assert [one.read for one in replies if isinstance(one, Reply)] == ["memory", "text"] * 6
    assert text_reads(metrics) == 6
    assert scheduler.running == 0
