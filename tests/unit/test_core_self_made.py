"""Questions that an LLM asks itself: what it wrote becomes a question, and what can't be one is replaced."""

from __future__ import annotations

import pytest

from cmt_core.fitting import reader as fitting_reader
from cmt_core.fitting.reader import ChatReader, wide_batches
from cmt_core.fitting.self_made import GENERAL_QUESTION, _question, ask_itself
from cmt_core.llm.backbone import Backbone
from cmt_core.text.prompt import SHORT_ANSWERS

TEXTS = ["The mayor opened the new bridge over the river.", "A storm cancelled the ferry.", "The town has six bells."]


@pytest.mark.parametrize(
    ("written", "whole", "expected"),
    [
        ("Who opened the bridge", True, "Who opened the bridge?"),  # it ended at the mark, which is left out
        ('"Who opened the bridge?" I ask.', True, "Who opened the bridge?"),
        ("Question: Who opened the bridge?\nAnswer: the mayor", False, "Who opened the bridge?"),
        ("\n\nWho opened the bridge?", False, "Who opened the bridge?"),
        ("The mayor opened the bridge.", True, GENERAL_QUESTION),
        ("Who opened the very long and new bridge over", False, GENERAL_QUESTION),  # cut off
        ("Who?", True, GENERAL_QUESTION),
        ("", True, GENERAL_QUESTION),
    ],
)
def test_first_line_up_to_its_mark_is_the_question(written: str, whole: bool, expected: str) -> None:
    assert _question(written, whole) == expected


def test_every_window_gets_a_question_and_the_llms_own_answer_whatever_is_written_with_it(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ChatReader(tiny_backbone)
    made = []
    for limit in (fitting_reader._CONTEXT_BYTES, 1):  # all at once, and one by one
        monkeypatch.setattr(fitting_reader, "_CONTEXT_BYTES", limit)
        monkeypatch.setattr(fitting_reader, "_ROWS", 1 if limit == 1 else 8)
        items = reader.windows(TEXTS, 64, lambda *_: None, "")
        told: list[int] = []
        ask_itself(reader, items, lambda stage, done, total, told=told: told.append(done), "asking")  # type: ignore[misc]
        assert told == sorted(told)
        assert told[-1] == 6
        made.append([(item.question, item.prompt, item.target) for item in items])
    assert made[0] == made[1]
    for number, (question, prompt, target) in enumerate(made[0]):
        assert prompt == reader.prompting.question(question, (), SHORT_ANSWERS if number % 2 else "")
        assert target


def test_given_questions_and_answers_stay(tiny_backbone: Backbone) -> None:
    reader = ChatReader(tiny_backbone)
    items = reader.windows(TEXTS, 64, lambda *_: None, "")
    items[0].question, items[0].target = "Who opened it?", [5, 6]
    items[1].question = "What did the storm do?"
    ask_itself(reader, items, lambda *_: None, "asking")
    assert (items[0].question, items[0].target) == ("Who opened it?", [5, 6])
    assert items[0].prompt == reader.prompting.question("Who opened it?")
    assert items[1].question == "What did the storm do?"
    assert items[1].target
    assert items[2].question


def test_batches_hold_as_many_windows_as_their_contexts_may_take(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = ChatReader(tiny_backbone).windows(TEXTS * 6, 64, lambda *_: None, "")
    longest = max(item.exact.nbytes for item in items)
    monkeypatch.setattr(fitting_reader, "_CONTEXT_BYTES", 12 * longest)
    assert [len(part) for part in wide_batches(items)] == [12, 6]
    monkeypatch.setattr(fitting_reader, "_CONTEXT_BYTES", 1)
    assert {len(part) for part in wide_batches(items)} == {8, 2}
    assert wide_batches([]) == []
