"""The text around a question, the same in training and in service."""

from __future__ import annotations

from cmt_core.text.normalisation import on_one_line

__all__ = ["ANSWER_CUE", "INSTRUCTION", "QUESTION_HEAD", "SHORT_ANSWERS", "answer_text", "bare_prompt", "question_text"]

# Learned prefixes start from the keys and values of this text.
INSTRUCTION = (
    "Read the documents below. Then answer each question about them with a few words copied from the documents, "
    "as short as possible, without any explanation.\n\n"
)
QUESTION_HEAD = "\n\nQuestion:"
ANSWER_CUE = "\nAnswer:"
SHORT_ANSWERS = "Answer the question with a few words, as short as possible."
"""A system message that asks a chat LLM for what question-answer sets hold."""


def question_text(question: str) -> str:
    """What follows the memories."""
    return f"{QUESTION_HEAD} {on_one_line(question)}{ANSWER_CUE}"


def answer_text(answer: str) -> str:
    """What the LLM is trained to write after `question_text`; the end-of-text token follows."""
    return f" {on_one_line(answer)}"


def bare_prompt(question: str) -> list[dict[str, str]]:
    """Chat messages that ask the LLM without any memory or document."""
    return [
        {"role": "system", "content": SHORT_ANSWERS},
        {"role": "user", "content": on_one_line(question)},
    ]
