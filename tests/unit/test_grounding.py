"""Whether an answer stands in its sources: spans, names, numbers, quotations, sentences, places, other scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_core.text.grounding import grounding_of, parts_of, says_nothing

BRIDGE = (
    'Mayor Ann Lund opened the new bridge in Aarhus on Monday. It cost 12,500 crowns and nine years, said "Big Ole" Wexlund\'s '
    "sister."
)


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("Ann Lund", "Ann Lund"),
        ("the new bridge", "new bridge"),  # articles don't count
        ("ann lund.", "Ann Lund"),
        ("12500", "12,500"),
        ("12,500 crowns", "12,500 crowns"),
        ("Wexlund", "Wexlund"),
        ("in Aarhus on Monday", "in Aarhus on Monday"),
    ],
)
def test_span_is_found_where_it_stands(answer: str, place: str) -> None:
    found = grounding_of(answer, ["Nothing of it.", BRIDGE])
    assert found.grounded
    assert found.sources == (1,)
    assert found.place is not None
    assert BRIDGE[slice(*found.place)] == place


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        ("Ann Lond", ("ann lond",)),  # a letter of a name
        ("Ole Lund", ("ole lund",)),  # two names made one
        ("four,600", ("four", "600")),
        ("125", ("125",)),  # no part of a number
        ("12.5", ("12.5",)),
        ("bridge opened", ()),  # its words in another order say something else
        ("", ()),
        ("The", ()),
    ],
)
def test_what_does_not_stand_there_is_not_grounded(answer: str, missing: tuple[str, ...]) -> None:
    found = grounding_of(answer, [BRIDGE])
    assert not found.grounded
    assert found.missing == missing


@pytest.mark.parametrize(
    ("answer", "grounded"),
    [
        ("The bridge in Aarhus was opened by Ann Lund.", True),
        ("Mayor Lund opened the bridge.", True),  # a middle name left out
        ("The bridge in Aarhus was opened by Ann Lond.", False),
        ("The bridge was opened on Tuesday.", False),
        ("It cost four thousand crowns.", False),
        ("It took nine years.", True),
        ('"Big Ole" was named.', True),
        ('"Big Olf" was named.', False),
        ("A cat sat quietly on a mat.", False),
        ("However, it cost 12500 crowns.", True),  # a first word of a sentence is no name
    ],
)
def test_sentence_is_held_to_its_facts_and_most_of_its_words(answer: str, grounded: bool) -> None:
    assert grounding_of(answer, [BRIDGE]).grounded is grounded


def test_what_the_question_says_needs_no_source() -> None:
    answer = "The bridge of Tarn was opened by Ann Lund."
    assert not grounding_of(answer, [BRIDGE]).grounded
    assert grounding_of(answer, [BRIDGE], "Who opened the bridge of Tarn?").grounded
    assert not grounding_of("Tarn.", [BRIDGE], "What is Tarn?").grounded  # nothing but the question


def test_facts_of_two_sources_are_of_both() -> None:
    other = "The ferry to Samso was cancelled by a storm in 2024."
    found = grounding_of(
        "Ann Lund opened the bridge in Aarhus, and a storm cancelled the ferry to Samso.", [BRIDGE, other]
    )
    assert found.grounded
    assert found.sources == (0, 1)


def test_place_is_that_of_the_text_as_it_came() -> None:
    text = "x\u200b\ufeff Joa\u0303o Peres, 新しい橋が完成した。"
    for answer, place in (("João", "Joa\u0303o"), ("新しい橋", "新しい橋")):
        found = grounding_of(answer, [text])
        assert found.place is not None
        assert text[slice(*found.place)] == place


def test_parts_are_sentences_or_the_whole() -> None:
    assert parts_of("1. Pickle\n2. Otto", by_sentence=True) == ["Pickle", "Otto"]
    assert parts_of("One. Two.", by_sentence=False) == ["One. Two."]
    assert says_nothing(" - ")
    assert says_nothing("12)")
    assert not says_nothing("1999")


@given(st.text(max_size=60), st.lists(st.text(max_size=80), max_size=3), st.text(max_size=30))
def test_no_text_breaks_it_and_a_place_lies_inside(answer: str, texts: list[str], question: str) -> None:
    found = grounding_of(answer, texts, question)
    if found.place is not None:
        start, end = found.place
        assert 0 <= start < end <= len(texts[found.sources[0]])
    assert not (found.grounded and found.missing)


@given(st.sampled_from(BRIDGE.split()), st.integers(1, 4))
def test_words_of_a_text_stand_in_it(word: str, many: int) -> None:
    words = BRIDGE.split()
    at = words.index(word)
    part = " ".join(words[at : at + many])
    assert grounding_of(part, [BRIDGE]).grounded or part.strip('".').lower() == "the"
