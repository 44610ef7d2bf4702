"""Answers that are spelled from their sources: which beginnings a span goes on from, which tokens pass, and who is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmt_core.generation.query import Query, Sampling
from cmt_core.generation.spelling import Speller
from cmt_core.model import CMT
from cmt_core.text.grounding import grounding_of
from cmt_core.text.spelling import SourceSpans
from services.query.engine.answer_row import query_of
from services.query.engine.messages import Ask, HitList
from services.query.engine.ticket import Doubt
from services.testing.memory_bank import window

BRIDGE = "Mayor Ann Lund opened the GT40 bridge on Monday. It cost 1,250,000 crowns, or 22.5 a head."
STOP = 0
TOKENS = [
    "",
    "Ann",
    " Lund",
    " Lond",
    "Mayor",
    " opened",
    " the",
    " GT",
    "40",
    "Lu",
    "nd",
    "!",
    " bridge",
    "Bob",
    " of",
]


@pytest.mark.parametrize(
    "answer",
    [
        "Ann Lund",
        "ann  lund",
        "the GT40 bridge",
        "a Monday",
        "1,250,000 crowns",
        "22.5",
        "a head.",
        "monday. It",
        "ＧＴ40",
    ],
)
def test_span_begins_at_each_of_its_letters(answer: str) -> None:
    spans = SourceSpans(["Nothing of it.", BRIDGE])
    assert spans.has(answer)
    for size in range(len(answer) + 1):
        assert spans.may_begin(answer[:size]), answer[:size]


@pytest.mark.parametrize(
    "answer",
    [
        "Ann Lond",
        "Ann L und",
        "Ann bridge",
        "GT41",
        "GTX",
        "1,251",
        "1250",
        "22.6",
        "und",
        "the the bridge",
        "head. Nothing",
    ],
)
def test_nothing_else_begins(answer: str) -> None:
    spans = SourceSpans([BRIDGE, "Nothing of it."])
    assert not spans.may_begin(answer)
    assert not spans.has(answer)


@pytest.mark.parametrize("answer", ["", "the", "Ann Lu", "opened the G", "1,25", ".", "T"])
def test_beginning_is_not_a_whole_span(answer: str) -> None:
    spans = SourceSpans([BRIDGE, "Nothing of it."])
    assert spans.may_begin(answer)
    assert not spans.has(answer)


@pytest.mark.parametrize("answer", ["東京", "京都で", "กรุงเทพ"])
def test_words_without_spaces_begin_and_end_anywhere(answer: str) -> None:
    assert SourceSpans(["昨日東京都で", "ในกรุงเทพฯ"]).has(answer)


WORDS = st.lists(
    st.sampled_from(["Ann", "the", "Straße", "12,500", "3.5", "a", "GT40", "东京", "naïve", "x-ray", "O'Hara"]),
    min_size=1,
    max_size=9,
)


@given(WORDS, st.sampled_from([" ", ", ", ". ", ' "', " (", "\n"]), st.data())
def test_every_span_of_any_text_begins_and_is_grounded(words: list[str], between: str, data: st.DataObject) -> None:
    text = between.join(words)
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    answer = between.join(words[start:end])
    spans = SourceSpans([text])
    assert all(spans.may_begin(answer[:size]) for size in range(len(answer) + 1))
    assert spans.has(answer) or answer in ("a", "the")
    assert grounding_of(answer, [text]).grounded or not set(words[start:end]) - {"a", "the"}


def text_of(ids: Sequence[int]) -> str:
    return "".join(TOKENS[token] for token in ids)


def logits_of(*best_first: str) -> torch.Tensor:
    """Of the whole vocabulary, with these the likeliest."""
    logits = torch.full((len(TOKENS),), -9.0)
    for rank, token in enumerate(best_first):
        logits[TOKENS.index(token)] = -float(rank)
    return logits


def written(speller: Speller, *steps: tuple[str, ...]) -> str:
    ids: list[int] = []
    for wanted in steps:
        ids.append(speller.best(ids, logits_of(*wanted)))
    return text_of([token for token in ids if token != STOP])


def test_likeliest_token_that_goes_on_with_a_span_is_taken() -> None:
    speller = Speller([BRIDGE], text_of, {STOP})
    assert written(speller, ("Bob", "Ann"), (" Lond", " Lund"), ("", "!")) == "Ann Lund"


def test_answer_does_not_end_within_a_word_nor_before_its_first() -> None:
    speller = Speller([BRIDGE], text_of, {STOP})
    assert written(speller, ("", "Lu"), ("", "!", "nd"), ("",)) == "Lund"


def test_answer_goes_its_own_way_where_no_likely_token_fits() -> None:
    speller = Speller([BRIDGE], text_of, {STOP})
    first = torch.zeros(300)  # what fits is not among the likeliest
    first[200:] = torch.arange(100.0) + 1
    odd = Speller([BRIDGE], lambda ids: "".join("Ann" if token == 5 else "zz" for token in ids), {STOP})
    first[5] = -1.0
    assert odd.best([], first) == 299
    assert odd.best([299], first) == 299
    assert odd.allowed([299], first) is None
    assert written(speller, ("Ann",)) == "Ann"


def test_draws_are_among_what_fits() -> None:
    allowed = Speller([BRIDGE], text_of, {STOP}).allowed([], logits_of("Bob", " Lond", "Ann", "Lu"))
    assert allowed is not None
    assert {TOKENS[token] for token in allowed} == {"Ann", " Lund", "Mayor", " opened", " the", " GT", "Lu", " bridge"}


def answers_of(cmt: CMT, queries: Sequence[Query], most: int = 12) -> list[str]:
    """Through the running batch."""
    batch = cmt.answer_batch()
    started = batch.join(queries)
    tokens = {one.row: list(one.tokens) for one in started}
    for _ in range(most - 1):
        for row, new in batch.step().items():
            tokens[row] += new
    return [cmt.tokens.text([token for token in ids if token is not None]).strip() for ids in tokens.values()]


def begins_a_span(answer: str, texts: Sequence[str]) -> bool:
    return bool(answer) and SourceSpans(texts).may_begin(answer)


def test_running_batch_spells_those_that_have_texts_and_leaves_the_others_alone(
    exact_cmt: CMT, corpus: tuple[str, ...]
) -> None:
    codes = [memory.code for text in corpus for memory in exact_cmt.compress(exact_cmt.windows("", text))]
    free = [Query("Who opened the bridge?", memories=codes[:1]), Query("Where?", memories=codes[1:3])]
    spelled = [replace(query, spelled_from=corpus[:3]) for query in free]
    without = answers_of(exact_cmt, free)
    assert not any(begins_a_span(answer, corpus[:3]) for answer in without)  # a random LLM says anything
    assert answers_of(exact_cmt, [spelled[0], free[1]])[1] == without[1]
    together = answers_of(exact_cmt, spelled)
    assert all(begins_a_span(answer, corpus[:3]) for answer in together)
    assert together == [answers_of(exact_cmt, [query])[0] for query in spelled]


def test_library_spells_as_the_running_batch_does(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    codes = [memory.code for text in corpus[:2] for memory in exact_cmt.compress(exact_cmt.windows("", text))]
    (answer,) = exact_cmt.answer(["Who?"], [codes], max_new_tokens=12, sources=[corpus[:2]])
    assert [answer.text] == answers_of(exact_cmt, [Query("Who?", memories=codes, spelled_from=corpus[:2])])
    assert exact_cmt.answer(["Who?"], [codes], max_new_tokens=12)[0].text != answer.text


def test_drawn_answers_are_spelled_and_a_seed_gives_them_again(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    codes = [memory.code for memory in exact_cmt.compress(exact_cmt.windows("", corpus[0]))]
    queries = [
        Query("Who?", memories=codes, spelled_from=corpus[:1], sampling=Sampling(5.0, seed=seed)) for seed in range(4)
    ]
    drawn = answers_of(exact_cmt, queries)
    assert all(begins_a_span(answer, corpus[:1]) for answer in drawn)
    assert len(set(drawn)) > 1
    assert drawn == answers_of(exact_cmt, queries)


DOUBT = Doubt((1,), (0.2, 0.8), tokens=3, prompt_tokens=20)


@pytest.mark.parametrize(
    ("mode", "doubt", "texts"),
    [
        ("memory", None, ["One\nof it", "two"]),
        ("rag", None, ["One\nof it", "two"]),
        ("hybrid", None, ["One\nof it", "two"]),
        ("auto", None, []),  # what it says by itself shows whether text is needed
        ("auto", DOUBT, ["two"]),
        ("closed", None, []),
    ],
)
def test_modes_are_spelled_from_what_they_read(mode: str, doubt: Doubt | None, texts: list[str]) -> None:
    found = HitList((window("a", "of it", b"", title="One"), window("b", "two", b"")))
    ask = Ask("Who?", mode=mode)  # type: ignore[arg-type]
    assert list(query_of(ask, found, False, doubt, spelled=True).spelled_from) == texts
    assert not query_of(ask, found, False, doubt).spelled_from
    assert not query_of(ask, found, True, doubt, spelled=True).spelled_from  # sentences are the LLM's own
