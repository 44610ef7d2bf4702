"""What stands around a memory, in tokens: how a question follows it, what separates documents, and what ends an answer.

A checkpoint is read in one of two ways: `prefix`, a learned prefix and short answers in one line (prefix_prompting.py), or
`chat`, the LLM's own chat template (chat_prompting.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Prompting", "Turns"]

Turns = Sequence[tuple[str, str]]
"""Earlier questions of a conversation with their answers."""


class Prompting(Protocol):
    """One way of asking; all results are token ids.

    `fixed_slots`: every document takes the positions of a whole window, however short it is, as a reader that was trained
    so expects; else the question follows right behind the last token. `answer_tokens` is the longest answer by default.
    """

    fixed_slots: bool
    answer_tokens: int
    stop_ids: set[int]

    def document(self, text: str, limit: int) -> list[int]:
        """A document's text as it stands in a context, in at most `limit` tokens."""
        ...

    def texts(self, passages: Sequence[str]) -> list[int]:
        """Passages behind each other, as text in the prompt."""
        ...

    def question(self, question: str, earlier: Turns = (), instructions: str = "") -> list[int]:
        """What follows a context: the instructions of the request, earlier turns, and the question."""
        ...

    def closed(self, question: str, earlier: Turns = (), instructions: str = "") -> list[int]:
        """The whole prompt without any context, in the LLM's own chat template."""
        ...

    def for_likelihood(self, question: str) -> tuple[list[int], list[int]]:
        """What stands between a context and the question's words, and those words: for their likelihood."""
        ...

    def answer_cue(self) -> list[int]:
        """What stands between a question's words and an answer."""
        ...

    def answer(self, text: str, closed: bool) -> list[int]:
        """A whole answer with the token that ends it; `closed` when it follows `closed`."""
        ...

    def closed_stop_ids(self) -> set[int]:
        """What ends an answer to `closed`."""
        ...
