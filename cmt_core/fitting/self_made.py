"""Questions that the LLM asks itself about a passage, and its own answers on the exact keys and values: a fit needs no labels."""

from __future__ import annotations

from collections.abc import Sequence

from cmt_core.fitting.fit_config import Progress
from cmt_core.fitting.reader import ChatReader, Item, wide_batches
from cmt_core.text.prompt import SHORT_ANSWERS

__all__ = ["GENERAL_QUESTION", "ask_itself"]

_ASK = "Ask one short question about a name, a number, a place or a time in this passage. Write the question alone."
GENERAL_QUESTION = "What does this passage say?"
_QUESTION_TOKENS, _ANSWER_TOKENS = 24, 24


def ask_itself(reader: ChatReader, items: Sequence[Item], progress: Progress, stage: str) -> None:
    """Gives every item that has none a question, and every one without a target the LLM's own answer.

    Every other answer is asked for in a few words, as question-answer sets have them.
    """
    total, done = 2 * len(items), 0
    unasked = [item for item in items if not item.question]
    for part in wide_batches(unasked):
        prompt = reader.prompting.question(_ASK)
        asked = reader.answers(part, [prompt] * len(part), _QUESTION_TOKENS, reader.prompting.stop_ids | _marks(reader))
        for item, ids in zip(part, asked, strict=True):
            item.question = _question(reader.tokens.text(ids), whole=len(ids) < _QUESTION_TOKENS)
        done += len(part)
        progress(stage, done, total)
    for number, item in enumerate(items):
        item.prompt = reader.prompting.question(item.question, (), SHORT_ANSWERS if number % 2 else "")
    end = reader.prompting.answer("", closed=False)[-1:]
    done = len(items)
    for part in wide_batches([item for item in items if item.target is None]):
        prompts = [item.prompt or [] for item in part]
        answers = reader.answers(part, prompts, _ANSWER_TOKENS, reader.prompting.stop_ids)
        for item, ids in zip(part, answers, strict=True):
            item.target = ids if len(ids) == _ANSWER_TOKENS else [*ids, *end]
        done += len(part)
        progress(stage, done, total)
    progress(stage, total, total)


def _marks(reader: ChatReader) -> set[int]:
    """The tokens that end a question, whatever follows in them: nothing behind one is read."""
    return {ids[0] for mark in ("?", "?\n", "?\n\n", '?"') if len(ids := reader.tokens.ids(mark)) == 1}


def _question(text: str, whole: bool) -> str:
    """The first line of what was written, up to its question mark; a statement, or what was cut off, asks nothing."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = line.removeprefix("Question:").strip().strip('"')
    head = line.partition("?")[0].strip()
    asks = ("?" in line or (whole and not line.endswith((".", "!")))) and len(head.split()) > 2
    return f"{head}?" if asks else GENERAL_QUESTION
