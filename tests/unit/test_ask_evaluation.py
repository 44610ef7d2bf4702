"""Questions as people ask them: the set holds what it says, and answers to it are judged as they should be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from cmt_core.evaluation.metrics import contains_facts
from services.commands.ask_evaluation import ask_all, left_out, made_updates, models_of, points
from services.commands.sample_bank import fill_bank, sample_items
from services.errors import SettingsError
from services.sample_news import AskedQuestion, ask_questions, bridge_questions, read_questions
from services.settings import load_settings
from services.stream.record import Document
from services.testing.lexical import LexicalModel


@pytest.fixture(scope="module")
def articles() -> dict[str, Document]:
    """The last version of every article."""
    return {one.id: one for one in sample_items() if isinstance(one, Document)}


def test_the_set_has_every_kind_and_its_facts_stand_in_the_articles(articles: dict[str, Document]) -> None:
    asked = ask_questions()
    kinds = Counter(one.kind for one in asked)
    assert len(asked) == 150 == len({(one.question, one.earlier) for one in asked})
    assert set(kinds) == {"fact", "why", "compare", "changed", "latest", "absent", "follow"}
    assert min(kinds.values()) >= 12
    for one in asked:
        assert bool(one.facts) == bool(one.article_ids) == (one.kind != "absent"), one.question
        assert bool(one.earlier) == (one.kind == "follow"), one.question
        assert len(one.article_ids) >= 1 + (one.kind == "compare") or one.kind == "absent", one.question
        text = " ".join(f"{articles[name].title} {articles[name].text}" for name in one.article_ids)
        for fact in one.facts:
            assert contains_facts(text, [fact]), (one.question, fact)


def test_bridges_are_answered_by_their_first_article_and_take_both(articles: dict[str, Document]) -> None:
    asked = bridge_questions()
    assert len(asked) == 30 == len({one.question for one in asked})
    for one in asked:
        first, second = (f"{articles[name].title} {articles[name].text}" for name in one.article_ids)
        assert contains_facts(first, one.facts), one.question
        assert not contains_facts(second, one.facts), one.question


def test_updates_change_the_answer_thrice_and_the_old_ones_are_gone(articles: dict[str, Document]) -> None:
    known = [(row["question"], row["answers"][-1], row["article_id"]) for row in read_questions()]
    made, asked, stale = made_updates(sample_items(), known)
    assert len(made) == 3 * len(asked) >= 140
    last = {one.id: one for one in made}
    for one, old in zip(asked, stale, strict=True):
        text = last[one.article_ids[0]].text
        assert contains_facts(text, one.facts), one.question
        assert not any(value in text for value in old) or len(old[0]) < 4, (one.question, old)
        assert len({one.facts[0][0], *old}) == 4


def test_questions_of_articles_that_are_left_out_have_no_answer() -> None:
    items, asked = left_out(sample_items(), ask_questions(), 3)
    ids = {one.id for one in items}
    kinds = Counter(one.kind for one in asked)
    assert 30 <= kinds["left out"] <= 80
    assert all(set(one.article_ids) <= ids for one in asked)


def test_answers_are_judged_by_kind_on_a_real_bank(tmp_path: Path) -> None:
    model: Any = LexicalModel()
    items = [
        Document("bridge", "Mayor Lund opened the bridge in Aarhus.", published_at=None),
        Document("ferry", "The ferry to Samso costs 40 crowns.", published_at=None),
    ]
    fill_bank(model, tmp_path / "bank", items)
    questions = [
        AskedQuestion("fact", "Who opened the bridge in Aarhus?", (("Lund",),), ("bridge",)),
        AskedQuestion("fact", "Who opened the bridge in Aarhus?", (("Quist",),), ("ferry",)),
        AskedQuestion("absent", "Which zebra won?", (), ()),
        AskedQuestion("absent", "Which mayor opened what bridge in Aarhus?", (), ()),
        AskedQuestion(
            "follow", "And how many crowns?", (("40",),), ("ferry",), (("Where does the ferry go?", "Samso"),)
        ),
    ]
    judged = ask_all(
        load_settings(), cast(Any, model), tmp_path / "bank", questions, "cmt-memory", [["Lund"], *[[]] * 4]
    )
    assert [one.told for one in judged] == [True, False, False, False, True]
    assert [one.refused for one in judged] == [False, False, True, False, False]
    assert [one.right_source for one in judged] == [True, False, False, False, True]
    assert [one.all_sources for one in judged] == [True, False, True, True, True]
    assert [one.stale for one in judged] == [True, False, False, False, False]
    found = {point.kind: point for point in points("cmt-memory", judged)}
    assert list(found) == ["fact", "absent", "follow", "all"]
    assert (found["fact"].told, found["fact"].refusing_recall) == (50.0, None)
    assert (found["absent"].told, found["absent"].refusing_recall) == (None, 50.0)
    assert (found["all"].questions, found["all"].refusing_precision, found["all"].stale) == (5, 100.0, 20.0)


def test_an_unknown_model_is_named() -> None:
    assert models_of("cmt-rag, cmt") == ["cmt", "cmt-rag"]
    with pytest.raises(SettingsError, match="'gpt' does not exist"):
        models_of("gpt")
