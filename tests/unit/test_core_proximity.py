"""Claims about how close together a question's words stand in a text."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cmt_core.retrieval.hybrid import HybridIndex
from cmt_core.retrieval.proximity import RERANKED, proximity

QUESTION = "Who opened the harbour bridge of Varde?"
TOGETHER = "The mayor opened the harbour bridge of Varde. It rained."
APART = "Varde is a town. Its mayor is old. The harbour froze. A bridge fell. A shop opened."


def test_text_with_the_words_in_one_place_is_closer_than_one_with_all_of_them_apart() -> None:
    together, apart, none = proximity(QUESTION, [TOGETHER, APART, "It rained all day."])
    assert 0.9 < together <= 1.0
    assert 0.0 == none < apart < 0.5


def test_two_sentences_in_a_row_count_as_one_place_and_three_do_not() -> None:
    near = "The harbour has a bridge. Varde opened it."
    far = "The harbour has a bridge. It is long. Varde opened it."
    assert proximity(QUESTION, [near])[0] > proximity(QUESTION, [far])[0]


def test_a_word_that_all_texts_have_counts_less_than_a_rare_one() -> None:
    texts = ["The bridge is red.", "Varde is red.", "A bridge.", "The bridge here.", "Some bridge."]
    bridge, varde, *_ = proximity("bridge or Varde", texts)
    assert varde > 3 * bridge


def test_words_are_compared_by_their_stems_and_stop_words_are_none() -> None:
    assert proximity("opening bridges", ["They opened a bridge."]) == proximity(
        "open bridge", ["They opened a bridge."]
    )
    assert proximity("who is the of?", [TOGETHER, ""]) == [0.0, 0.0]
    assert proximity(QUESTION, []) == []


@pytest.mark.parametrize("text", ["", "\n\n", "…", "\ud800", "橋は赤い。", "a" * 100_000])
def test_odd_texts_have_a_proximity_too(text: str) -> None:
    assert proximity(text, [TOGETHER, text])[0] == 0.0
    assert proximity(QUESTION, [text]) == [0.0]


def test_threads_get_what_one_thread_gets() -> None:
    texts = [f"The mayor opened bridge {n} of Varde. It is number {n}." for n in range(40)]
    expected = proximity(QUESTION, texts)
    got: list[list[float]] = []
    threads = [threading.Thread(target=lambda: got.append(proximity(QUESTION, texts))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 8


def test_search_puts_the_text_with_the_words_together_first() -> None:
    """Keys alike, and the same words as often, so that only their places tell the texts apart."""
    keys = np.ones((3, 4), np.float32) / 2
    texts = ["Harbour. Bridge. Opened. Rain. Varde. Snow.", "Opened harbour bridge Varde. Rain. Snow.", "Rain. Snow."]
    (found,) = HybridIndex(texts, keys).nearest([QUESTION], keys[:1].astype(np.float16), 3)
    assert [one.row for one in found] == [1, 0, 2]
    many = HybridIndex([*texts] * 20, np.ones((60, 4), np.float32) / 2)
    (found,) = many.nearest([QUESTION], keys[:1].astype(np.float16), 60)
    assert len({one.row for one in found}) == 60 > RERANKED
