"""A prompt that is too long: what is left out, in which order, and what is said about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_core.generation.query import Mode, Query
from services.query.engine.messages import Failure
from services.query.engine.prompt_budget import PromptBudget, QueryInBudget

LONG = " ".join(f"w{i}" for i in range(2000))


def tokens(query: Query) -> int:
    """One a word, as the LLM's tokenizer would have more."""
    own = [query.question, *query.passages, *(text for turn in query.earlier for text in turn)]
    return sum(len(text.split()) for text in [*own, query.instructions if query.mode == "closed" else ""])


def fitted(query: Query, most: int = 100, *, shorten: bool = True) -> QueryInBudget:
    one = PromptBudget(most, shorten, tokens).fitted(query)
    assert isinstance(one, QueryInBudget), one
    assert tokens(one.query) <= most
    return one


def test_what_fits_is_untouched() -> None:
    query = Query("Who won?", earlier=(("a", "b"),))
    assert fitted(query) == QueryInBudget(query)


@pytest.mark.parametrize("shorten", [True, False])
def test_oldest_turns_are_left_out_first_whatever_the_setting_says(shorten: bool) -> None:
    turns = (("old " * 60, "x"), ("newer " * 60, "y"), ("newest", "z"))
    one = fitted(Query("Who won?", earlier=turns), shorten=shorten)
    assert one.query.earlier == turns[1:]
    assert "1 earlier turns" in one.notes[0]


def test_middle_of_a_long_question_is_left_out_and_both_ends_are_read() -> None:
    one = fitted(Query(f"Make a title. {LONG} Who won?"))
    assert one.query.question.startswith("Make a title.")
    assert one.query.question.endswith("Who won?")
    assert tokens(one.query) > 60  # as much as fits, not a scrap
    assert str(len(LONG) + len("Make a title.  Who won?")) in one.notes[0]


def test_long_system_message_is_shortened_where_it_is_read() -> None:
    one = fitted(Query("Who won?", mode="closed", instructions=LONG))
    assert one.query.question == "Who won?"
    assert "system message" in one.notes[0]
    assert fitted(Query("Who won?", instructions=LONG)).notes == ()


def test_question_and_system_message_that_are_both_too_long_are_both_shortened() -> None:
    assert len(fitted(Query(LONG, mode="closed", instructions=LONG)).notes) == 2


@pytest.mark.parametrize(
    ("query", "shorten"),
    [
        (Query(LONG), False),  # the operator wants a refusal
        (Query("Who won?", mode="rag", passages=[LONG]), True),  # sources are not shortened: top_k asked for them
        (Query("Who won?", mode="rag", passages=[LONG], earlier=(("a", "b"),)), True),
    ],
)
def test_what_can_not_be_made_to_fit_is_refused(query: Query, shorten: bool) -> None:
    refused = PromptBudget(100, shorten, tokens).fitted(query)
    assert isinstance(refused, Failure)
    assert refused.kind == "too_long"
    assert "serve.max_prompt_tokens" in refused.message


@given(
    question=st.text(max_size=3000),
    instructions=st.text(max_size=3000),
    earlier=st.lists(st.tuples(st.text(max_size=400), st.text(max_size=400)), max_size=3),
    mode=st.sampled_from(["memory", "rag", "hybrid", "closed"]),
    most=st.integers(1, 200),
)
def test_whatever_comes_is_made_to_fit_or_refused(
    question: str, instructions: str, earlier: list[tuple[str, str]], mode: Mode, most: int
) -> None:
    def characters(query: Query) -> int:
        return len(query.question) + len(query.instructions) + sum(len(text) for turn in query.earlier for text in turn)

    query = Query(question, mode, instructions=instructions, earlier=tuple(earlier))
    one = PromptBudget(most, True, characters).fitted(query)
    if isinstance(one, QueryInBudget):
        assert characters(one.query) <= most
