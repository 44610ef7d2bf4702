"""What stands around a memory, in tokens: how a question follows it, what separates documents, and what ends an answer.

A checkpoint is read in one of two ways: `prefix`, a learned prefix and short answers in one line, or `chat`, the LLM's own chat
template (chat_prompting.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cmt_core.backbone import Backbone
from cmt_core.config import MemoryConfig
from cmt_core.normalisation import on_one_line
from cmt_core.prompt import QUESTION_HEAD, answer_text
from cmt_core.tokens import Tokens

__all__ = ["PrefixPrompting", "Prompting", "Turns", "prompting_of"]

Turns = Sequence[tuple[str, str]]
"""Earlier questions of a conversation with their answers."""


class Prompting(Protocol):
    """One way of asking; all results are token ids.

    `room_for_window`: every document takes the positions of a whole window, however short it is, as a reader that was trained
    so expects; else the question follows right behind the last token. `answer_tokens` is the longest answer by default.
    """

    room_for_window: bool
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

    def looked_at(self, question: str) -> tuple[list[int], list[int]]:
        """What stands between a context and the question's words, and those words: for their likelihood."""
        ...

    def answer(self, text: str, closed: bool) -> list[int]:
        """A whole answer with the token that ends it; `closed` when it follows `closed`."""
        ...

    def closed_stop_ids(self) -> set[int]:
        """What ends an answer to `closed`."""
        ...


class PrefixPrompting:
    """A learned prefix, documents, then "Question: ... Answer:" and an answer of one line."""

    room_for_window = True
    answer_tokens = 32

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.stop_ids = tokens.stop_ids

    def document(self, text: str, limit: int) -> list[int]:
        """See Prompting."""
        return self._tokens.ids(text)[:limit]

    def texts(self, passages: Sequence[str]) -> list[int]:
        """See Prompting."""
        return self._tokens.ids("\n\n".join(passages))

    def question(self, question: str, earlier: Turns = (), instructions: str = "") -> list[int]:
        """See Prompting; the learned prefix stands for instructions."""
        return self._tokens.prompt(question, earlier)

    def closed(self, question: str, earlier: Turns = (), instructions: str = "") -> list[int]:
        """See Prompting."""
        return self._tokens.closed_prompt(question, earlier, instructions)

    def looked_at(self, question: str) -> tuple[list[int], list[int]]:
        """See Prompting."""
        return self._tokens.ids(QUESTION_HEAD), self._tokens.ids(f" {on_one_line(question)}")

    def answer(self, text: str, closed: bool) -> list[int]:
        """See Prompting."""
        written = answer_text(text).lstrip() if closed else answer_text(text)
        return [*self._tokens.ids(written), self._tokens.eos_id]

    def closed_stop_ids(self) -> set[int]:
        """See Prompting."""
        return {self._tokens.eos_id}


def prompting_of(config: MemoryConfig, backbone: Backbone, tokens: Tokens) -> Prompting:
    """The checkpoint's way of asking. Raises UnsupportedModelError for `chat` without a usable chat template."""
    if config.reading == "prefix":
        return PrefixPrompting(tokens)
    from cmt_core.chat_prompting import ChatPrompting

    return ChatPrompting(tokens, backbone.model.generation_config, config.instruction)
