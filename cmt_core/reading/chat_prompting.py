"""Reading `chat`: documents stand in the LLM's own chat template, at one place behind a fixed beginning.

    <system> our instruction <user> "Passages:"  | documents |  the request's system message, question, more turns <assistant>
    -------------------- head ------------------                ---------------------- what follows --------------------------

The head is the same for every request, so a document read behind it stands there again, whatever the request says: the request's
system message, earlier turns and question all come behind the documents. A template without a system role has the instruction in
its first user turn, too. Why documents stand there: docs/decisions/0092.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from cmt_core.errors import UnsupportedModelError
from cmt_core.llm.tokens import Tokens
from cmt_core.reading.prompting import Turns

__all__ = ["INSTRUCTION", "ChatPrompting"]

INSTRUCTION = "You are a helpful assistant. Answer from the passages."
_PASSAGES = "Passages:\n"
_SEPARATOR = "\n\n"  # behind every document, and so before what follows
_NO_PLACE = "this LLM's chat template has no place for documents before a conversation"


class ChatPrompting:
    """One LLM's chat template around documents; see Prompting."""

    fixed_slots = False
    answer_tokens = 256

    def __init__(self, tokens: Tokens, generation: Any, instruction: str = INSTRUCTION) -> None:
        """`generation` is the LLM's generation configuration. Raises UnsupportedModelError without a usable chat template."""
        self._tokens, self._instruction = tokens, instruction
        nonce = secrets.token_hex(8)  # nobody else can write these
        self._documents, self._question, self._answer = (
            f"x{name}{nonce}x" for name in ("documents", "question", "answer")
        )
        if not tokens.has_chat_template:
            raise UnsupportedModelError("this LLM has no chat template: take its instruct version")
        self._system_role = True
        if not self._is_steady():
            self._system_role = False
            if not self._is_steady():
                raise UnsupportedModelError(_NO_PLACE)
        self.head = tokens.ids(self._asked("", (), "")[0])
        self._separator = tokens.ids(_SEPARATOR)
        self._end_id = self._end_of_turn()
        self.stop_ids = {self._end_id, tokens.eos_id, *_listed(generation.eos_token_id)}

    def document(self, text: str, limit: int) -> list[int]:
        """See Prompting; the separator behind it is part of it."""
        return self._tokens.ids(text)[: limit - len(self._separator)] + self._separator

    def texts(self, passages: Sequence[str]) -> list[int]:
        """See Prompting."""
        return [token for text in passages for token in [*self._tokens.ids(text), *self._separator]]

    def question(self, question: str, earlier: Turns = (), instructions: str = "") -> list[int]:
        """See Prompting."""
        return self._tokens.ids(self._asked(question, earlier, instructions)[1])

    def closed(self, question: str, earlier: Turns = (), instructions: str = "") -> list[int]:
        """See Prompting; without instructions the template's own system message stands."""
        spoken = [text for turn in earlier for text in turn] + [question]
        if not instructions:
            return self._tokens.ids(self._rendered(_turns(spoken)))
        try:
            text = self._rendered([{"role": "system", "content": instructions}, *_turns(spoken)])
        except TemplateError:  # no system role
            text = self._rendered(_turns([f"{instructions}\n\n{spoken[0]}", *spoken[1:]]))
        return self._tokens.ids(text)

    def for_likelihood(self, question: str) -> tuple[list[int], list[int]]:
        """See Prompting."""
        before, _, _ = self._asked(self._question, (), "")[1].partition(self._question)
        return self._tokens.ids(before), self._tokens.ids(question.strip())

    def answer_cue(self) -> list[int]:
        """See Prompting."""
        return self._tokens.ids(self._asked(self._question, (), "")[1].partition(self._question)[2])

    def answer(self, text: str, closed: bool) -> list[int]:
        """See Prompting."""
        return [*self._tokens.ids(text.strip()), self._end_id]

    def closed_stop_ids(self) -> set[int]:
        """See Prompting."""
        return self.stop_ids

    def _asked(self, question: str, earlier: Turns, instructions: str) -> tuple[str, str]:
        """The template's text before the documents, and what follows them."""
        first, *more = [text for turn in earlier for text in turn] + [question]
        told = _SEPARATOR.join(text for text in (instructions, first) if text)
        placed = f"{_PASSAGES}{self._documents}{told}"
        if self._system_role:
            messages = [{"role": "system", "content": self._instruction}, *_turns([placed, *more])]
        else:
            messages = _turns([f"{self._instruction}{_SEPARATOR}{placed}", *more])
        parts = self._rendered(messages).split(self._documents)
        if len(parts) != 2:
            raise UnsupportedModelError(_NO_PLACE)
        return parts[0], parts[1]

    def _is_steady(self) -> bool:
        """Whether the head is the same for every kind of request, and all that is said follows it in its order."""
        heads = set()
        for earlier in ((), (("xfirstx", "xreplyx"),)):
            for instructions in ("", "xinstructionsx"):
                try:
                    head, rest = self._asked(self._question, earlier, instructions)
                except (TemplateError, UnsupportedModelError):
                    return False
                said = [instructions, *(text for turn in earlier for text in turn), self._question]
                places = [rest.find(text) for text in said if text]
                if -1 in places or places != sorted(places):
                    return False
                heads.add(head)
        return len(heads) == 1

    def _end_of_turn(self) -> int:
        """The control token that the template puts behind an assistant's words, else the end of text."""
        after = self._rendered(_turns(["a", self._answer, "b"])).partition(self._answer)[2]
        ids = self._tokens.ids(after.lstrip())
        return ids[0] if ids and self._tokens.is_control(ids[0]) else self._tokens.eos_id

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        """Template text for the next answer; what a reasoning LLM thinks aloud is switched off where its template can."""
        return self._tokens.chat(messages, enable_thinking=False)


def _turns(contents: Sequence[str]) -> list[dict[str, str]]:
    """Messages of a conversation that starts with the user."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]


def _listed(eos: int | list[int] | None) -> list[int]:
    if eos is None:
        return []
    return eos if isinstance(eos, list) else [eos]
