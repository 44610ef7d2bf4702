"""Reading `prefix`: a learned prefix, documents, a question, and a short answer in one line."""

from __future__ import annotations

from collections.abc import Sequence

from cmt_core.llm.tokens import Tokens
from cmt_core.reading.prompting import Turns
from cmt_core.text.normalisation import on_one_line
from cmt_core.text.prompt import ANSWER_CUE, QUESTION_HEAD, answer_text

__all__ = ["PrefixPrompting"]


class PrefixPrompting:
    """A learned prefix, documents, then "Question: ... Answer:" and an answer of one line."""

    fixed_slots = True
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

    def for_likelihood(self, question: str) -> tuple[list[int], list[int]]:
        """See Prompting."""
        return self._tokens.ids(QUESTION_HEAD), self._tokens.ids(f" {on_one_line(question)}")

    def answer_cue(self) -> list[int]:
        """See Prompting."""
        return self._tokens.ids(ANSWER_CUE)

    def answer(self, text: str, closed: bool) -> list[int]:
        """See Prompting."""
        written = answer_text(text).lstrip() if closed else answer_text(text)
        return [*self._tokens.ids(written), self._tokens.eos_id]

    def closed_stop_ids(self) -> set[int]:
        """See Prompting."""
        return {self._tokens.eos_id}
