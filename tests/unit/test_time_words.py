"""What questions say about when, and what that does to the order of what is found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metrics import Metrics
from services.query.engine.messages import Ask, HitList
from services.query.engine.retrieval import Retrieval
from services.query.engine.time_words import TimeWish, time_wish
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.serving import publish

NOW = datetime(2026, 11, 20, 18, 30, tzinfo=UTC)  # a Friday


def at(day: int, hour: int = 0, month: int = 11, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("question", "since", "until"),
    [
        ("What happened today?", at(20), at(21)),
        ("What happened yesterday in Tarn?", at(19), at(20)),
        ("What is new since yesterday?", at(19), None),
        ("What happened on Monday?", at(16), at(17)),
        ("Who resigned on Friday?", at(20), at(21)),
        ("Which record fell since Monday?", at(16), None),
        ("What was in the news on 12 November?", at(12), at(13)),
        ("What was decided on November 12th, 2025?", at(12, year=2025), at(13, year=2025)),
        ("What was said on 24 December?", at(24, month=12, year=2025), at(25, month=12, year=2025)),
        ("What changed in the last 3 days?", NOW - timedelta(days=3), None),
        ("What happened over the past week?", NOW - timedelta(days=7), None),
        ("What happened last week?", at(9), at(16)),
        ("What did the clockmaker find this week?", NOW - timedelta(days=7), None),
    ],
)
def test_words_of_time_are_spans(question: str, since: datetime, until: datetime | None) -> None:
    assert time_wish(question, NOW) == TimeWish(since, until)


@pytest.mark.parametrize("question", ["What is the latest on Mount Hesk?", "Any news about the ferry?"])
def test_latest_is_the_later_the_better(question: str) -> None:
    wish = time_wish(question, NOW)
    assert wish == TimeWish(latest=True)
    assert wish is not None
    shares = [wish.share(at(day), at(20)) for day in (20, 18, 1)]
    assert shares[0] == 1.0
    assert shares[1] == pytest.approx(0.5)
    assert shares[2] < 0.01
    assert wish.share(None, at(20)) == 0.0


@pytest.mark.parametrize(
    "question",
    ["Who may march in May?", "What does the 31 February mean?", "Who is Todayson?", "Which mondayish song?", ""],
)
def test_other_words_say_nothing_of_time(question: str) -> None:
    assert time_wish(question, NOW) is None


@given(st.text(max_size=80))
def test_no_question_breaks_it(question: str) -> None:
    time_wish(question, NOW)


def found(question: str, k: int = 1, **options: Any) -> list[str]:
    model, bank = LexicalModel(), InMemoryBank()
    for day in range(8, 20):
        publish(bank, model, f"d{day}", f"The council of Tarn met in room {day}.", published_at=at(day))
    publish(bank, model, "undated", "The council of Tarn met in a room.")
    retrieval = Retrieval(
        model, bank, top_k=k, min_score=0.0, every_chunk=False, metrics=Metrics(), clock=lambda: NOW, **options
    )
    (hits,) = retrieval.find([Ask(question)])
    assert isinstance(hits, HitList)
    return [hit.doc_id for hit in hits.hits]


def test_documents_of_the_asked_time_come_first_and_the_others_stay() -> None:
    question = "What of the council of Tarn yesterday?"
    assert found(question, time_weight=0.3) == ["d19"]
    assert found(question, time_weight=0.0) != ["d19"]
    assert len(found(question, k=3, time_weight=0.3)) == 3


def test_latest_brings_the_newest_of_those_that_fit_alike() -> None:
    assert found("What is the latest of the council of Tarn?", time_weight=0.3) == ["d19"]


def test_as_of_is_the_now_of_its_question() -> None:
    model, bank = LexicalModel(), InMemoryBank()
    for day in (3, 4):
        publish(bank, model, f"d{day}", "The council of Tarn met.", published_at=at(day), ingested_at=at(day))
    retrieval = Retrieval(
        model, bank, top_k=1, min_score=0.0, every_chunk=False, metrics=Metrics(), clock=lambda: NOW, time_weight=0.3
    )
    asks = [Ask("Who of the council of Tarn met yesterday?", as_of=at(5, 12)), Ask("Who of the council met today?")]
    first, _ = retrieval.find(asks)
    assert isinstance(first, HitList)
    assert [hit.doc_id for hit in first.hits] == ["d4"]
