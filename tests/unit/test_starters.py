"""Questions to begin with: made of what the bank holds, and offered only where it can answer them."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from services.query.gateway.starter_questions import question_of
from services.settings import load_settings
from tests.serving import LocalEngine, client_of, publish


@pytest.mark.parametrize(
    ("text", "question"),
    [
        (
            "Mayor Lund opened the bridge in Aarhus on Monday. It cost 12 million.",
            "Who opened the bridge in Aarhus on Monday?",
        ),
        (
            "It rained. Tarrin Lines ordered seven hybrid ferries, the company said.",
            "Who ordered seven hybrid ferries?",
        ),
        ("Ysolde Marchetane won the Alder Prize for fiction.", "Who won the Alder Prize for fiction?"),
        ("The comet was photographed over Skagen.", None),  # nobody did it
        ("She opened the bridge in Aarhus on Monday.", None),  # who she is stands elsewhere
        ("Mayor Lund opened it there with her own hands.", None),  # what it is, too
        ("“Lund opened the bridge in Aarhus,” he said.", None),
        ("Lund opened it.", None),
        ("高橋は月曜日に橋を開いた。", None),
        ("", None),
    ],
)
def test_question_is_made_of_a_sentence_that_answers_it(text: str, question: str | None) -> None:
    assert question_of(text) == question


def starters(engine: LocalEngine, given: tuple[str, ...] = (), **query: str | int) -> list[tuple[str, str]]:
    async def asked() -> httpx.Response:
        async with client_of(engine, load_settings(serve__starters=list(given))) as client:
            return await client.get("/v1/starters", params=query)

    reply = asyncio.run(asked())
    assert reply.status_code == httpx.codes.OK, reply.text
    return [(one["question"], one["doc_id"]) for one in reply.json()["data"]]


def test_question_is_offered_for_the_article_that_it_was_made_of() -> None:
    engine = LocalEngine()
    publish(engine.bank, engine.model, "a-2", "Skerry Aerospace built four satellites for watching peat bogs.")
    assert sorted(starters(engine)) == [
        ("Who built four satellites for watching peat bogs?", "a-2"),
        ("Who opened the bridge in Aarhus on Monday?", "a-1"),
    ]


def test_what_another_article_would_answer_is_not_offered() -> None:
    engine = LocalEngine()
    publish(engine.bank, engine.model, "a-0", "Who opened the bridge in Aarhus on Monday is not known in Aarhus.")
    assert [doc_id for _, doc_id in starters(engine) if doc_id == "a-1"] == []


def test_given_question_comes_first_and_only_where_something_is_relevant() -> None:
    given = ("Who photographed the comet?", "What did the bridge in Aarhus cost?")
    found = starters(LocalEngine(), given)
    assert found == [("What did the bridge in Aarhus cost?", "a-1")]  # one question an article


def test_empty_namespace_offers_nothing() -> None:
    assert starters(LocalEngine(), ("What did the bridge in Aarhus cost?",), namespace="other") == []


def test_as_many_are_offered_as_are_asked_for() -> None:
    engine = LocalEngine()
    for number, city in enumerate(("Odense", "Randers", "Kolding", "Esbjerg", "Vejle")):
        publish(
            engine.bank, engine.model, f"c-{number}", f"Nora Falk{number} painted forty old houses near {city} harbour."
        )
    assert len(starters(engine, n=2)) == 2
