"""Questions that the LLM asks itself about a passage, and its own answers on the exact keys and values: a fit needs no labels."""

from __future__ import annotations

from collections.abc import Sequence

from cmt_core.fitting.fit_config import Progress
from cmt_core.fitting.reader import ChatReader, Item, batches
from cmt_core.prompt import SHORT_ANSWERS

__all__ = ["ask_itself"]

_ASK = "Ask one short question about a name, a number, a place or a time in this passage. Write the question alone."
_GENERAL = "What does this passage say?"
_QUESTION_TOKENS, _ANSWER_TOKENS = 32, 32


def ask_itself(reader: ChatReader, items: Sequence[Item], progress: Progress, stage: str) -> None:
    """Gives every item that has none a question, and every one without a target the LLM's own answer.

    Every other answer is asked for in a few words, as question-answer sets have them.
    """
    done = 0
    for part in batches(items):
        unasked = [item for item in part if not item.question]
        prompts = [reader.prompting.question(_ASK) for _ in unasked]
        if unasked:
            asked = reader.answers([item.exact for item in unasked], prompts, _QUESTION_TOKENS)
            for item, ids in zip(unasked, asked, strict=True):
                item.question = _question(reader.tokens.text(ids))
        for number, item in enumerate(part):
            item.prompt = reader.prompting.question(item.question, (), SHORT_ANSWERS if number % 2 else "")
        unanswered = [item for item in part if item.target is None]
        if unanswered:
            rows, prompts = [item.exact for item in unanswered], [item.prompt or [] for item in unanswered]
            for item, ids in zip(unanswered, reader.answers(rows, prompts, _ANSWER_TOKENS), strict=True):
                item.target = (
                    ids if len(ids) == _ANSWER_TOKENS else [*ids, reader.prompting.answer("", closed=False)[-1]]
                )
        done += len(part)
        progress(stage, done, len(items))


def _question(text: str) -> str:
    """The first line of what was written, up to its question mark."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = line.removeprefix("Question:").strip().strip('"')
    head, mark, _ = line.partition("?")
    return f"{head}?" if mark and len(head.split()) > 2 else _GENERAL
