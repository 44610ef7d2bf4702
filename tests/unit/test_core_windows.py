"""Windows keep every word, in order, within the token limit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cmt_core.llm.backbone import Backbone
from cmt_core.llm.tokens import Tokens
from cmt_core.text.normalisation import normalised
from cmt_core.text.windows import Window, split_document

Count = Callable[[str], int]

SENTENCES = (
    "The mayor opened the bridge.",
    'He said "It is open." Then he left.',
    "(It had rained.) No one came!",
    "Was it late? It was.",
    "the end of a line\n",
    "Prices rose by 3 per cent\n\n",
    "https://example.org/" + "a1b2-" * 40,
    "Čas běží. “Ano.” Řekl: 東京は雨です。 🌧️🌧️",
    "x",
    "...",
)
TEXTS = st.lists(st.sampled_from(SENTENCES) | st.text(max_size=40), max_size=25).map(" ".join)


@pytest.fixture(scope="module")
def count(tiny_backbone: Backbone) -> Count:
    """Tokens of a string, as the program counts them: of its normalised form."""
    tokens = Tokens(tiny_backbone)
    return lambda text: len(tokens.ids(text))


def bare(text: str) -> str:
    """What can be seen of a text, white space aside."""
    return "".join(char for char in text if normalised(char).strip())


def covers(windows: list[Window], text: str) -> bool:
    """Whether the windows tell the text in order and without a gap, white space aside; overlaps are allowed."""
    whole, ends = bare(text), {0}
    for window in windows:
        part = bare(window.text)
        starts = [at for at in range(len(whole)) if whole.startswith(part, at)]
        ends = {at + len(part) for at in starts if any(at <= end < at + len(part) for end in ends)}
    return len(whole) in ends


@settings(max_examples=150, deadline=None)
@example(title="Storm over the island " * 30, text=f"{SENTENCES[7]} 0 0 00\x80 {SENTENCES[0]}", max_tokens=32)
@given(title=st.text(max_size=60) | st.just("Storm over the island " * 30), text=TEXTS, max_tokens=st.integers(32, 80))
def test_windows_hold_the_whole_text_in_order_within_the_limit(
    count: Count, title: str, text: str, max_tokens: int
) -> None:
    windows = split_document(title, text, max_tokens, count)
    assert covers(windows, text)
    assert [window.number for window in windows] == list(range(len(windows)))
    assert all(count(window.reading) <= max_tokens for window in windows)
    assert all(window.tokens for window in windows)
    assert not any("\n" in window.text for window in windows)  # a version's text has one window a line
    assert windows == split_document(title, text, max_tokens, count)


def test_first_words_of_a_window_are_counted_as_they_are_read() -> None:
    """A word at the start of a window, without its space, can be many tokens: the limit must hold there too."""

    def count(text: str) -> int:
        return sum(1 if word.startswith(" ") else len(word) for word in text.replace(" ", "\0 ").split("\0") if word)

    text = "Internationalisation matters here. " * 12
    windows = split_document("", text, 40, count)
    assert covers(windows, text)
    assert all(count(window.reading) <= 40 for window in windows)


def test_last_sentence_of_a_window_opens_the_next(count: Count) -> None:
    text = " ".join(f"The storm number {n} came from the coast." for n in range(20))
    windows = split_document("", text, 80, count)
    assert len(windows) > 2
    for before, after in itertools.pairwise(windows):
        last = before.text.split(". ")[-1]
        assert after.text.startswith(last)
        assert after.text != last


def test_closing_quotes_and_brackets_stay_with_their_sentence(count: Count) -> None:
    text = 'He said "It is open." Then he left. (It rained.) No one came.'
    assert split_document("", text, 64, count)[0].text == text


@pytest.mark.parametrize("text", ["", "   ", "\n\n\t"])
def test_text_without_words_gives_no_window(count: Count, text: str) -> None:
    assert split_document("A title", text, 64, count) == []


def test_sentence_longer_than_a_window_is_cut_at_words(count: Count) -> None:
    words = [f"word{n}" for n in range(60)]
    windows = split_document("", " ".join(words), 32, count)
    assert [word for window in windows for word in window.text.split()] == words
    assert all(count(window.reading) <= 32 for window in windows)


def test_very_long_title_is_shortened_to_a_quarter(count: Count) -> None:
    title = "A very long headline about the bridge " * 200
    (window,) = split_document(title, "It opened.", 64, count)
    assert 0 < count(window.title) <= 16
    assert title.startswith(window.title)
    assert window.text == "It opened."


def test_title_is_read_before_every_window(count: Count) -> None:
    windows = split_document("Bridge  opened", "The mayor opened the bridge. " * 20, 48, count)
    assert len(windows) > 1
    assert all(window.reading == f"Bridge opened\n{window.text}" for window in windows)


def test_a_text_without_a_sentence_end_is_counted_a_few_times_however_long_it_is() -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text.split())

    words = [f"w{n}" for n in range(100_000)]
    windows = split_document("", " ".join(words), 256, count)
    assert [word for window in windows for word in window.text.split()] == words
    assert counted < 5 * len(" ".join(words)), "its tokenizing would hold up other documents"


def test_a_window_carries_the_length_that_the_split_counted(count: Count) -> None:
    text = " ".join(f"Ferry {number} sails from the northern pier again." for number in range(60))
    windows = split_document("New pier", text, 64, count)
    assert len(windows) > 3
    for window in windows:
        assert abs(window.tokens - count(window.reading)) <= 2, "tokens merge differently across joins"


def test_a_text_of_usual_sentences_is_counted_little_more_than_once() -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text.split())

    text = " ".join(f"Ferry {number} sails from the northern pier again." for number in range(1000))
    assert len(split_document("", text, 200, count)) > 30
    assert counted < 1.3 * len(text), "every count is a pass of the tokenizer"
