"""What a prompt may cost: how a question with its history is made to fit, or refused.

1. earlier turns are left out, the oldest first: a client sends its whole history and can't take it back
2. of a question, or of a system message that is longer, the middle is left out: a task stands before or behind what it quotes
3. what is read (texts of sources) stays: its amount was asked for by `top_k`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cmt_core.generation.query import Query
from services.query.engine.messages import Failure

__all__ = ["PromptBudget", "QueryInBudget"]

_GAP = " [...] "
_LEAST_CHARS = 64  # of a text that is shortened: less says nothing any more
_LONGEST_STEP, _SHORTEST_STEP = 0.25, 0.95  # tokens are not spread evenly over a text: it is shortened in some steps
_NAMES = {"question": "question", "instructions": "system message"}


@dataclass(frozen=True, slots=True)
class QueryInBudget:
    """A query whose prompt is short enough, with what was left out for it, in words."""

    query: Query
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptBudget:
    """`most_tokens` of a prompt, as `count` counts them; without `shorten` what only fits without its middle is refused.

    `instructed`: system messages are read in every mode, not in `closed` alone.
    """

    most_tokens: int
    shorten: bool
    count: Callable[[Query], int]
    instructed: bool = False

    def fitted(self, query: Query) -> QueryInBudget | Failure:
        """The query with as much of it as fits; a Failure `too_long` when that is too little."""
        if self.count(query) <= self.most_tokens:
            return QueryInBudget(query)
        short = self._without_turns(query)
        if self.shorten:
            short = self._without_middles(short)
        if (size := self.count(short)) > self.most_tokens:
            return Failure(
                "too_long",
                f"the prompt has {size} tokens, {self.most_tokens} are allowed (serve.max_prompt_tokens): ask a shorter "
                "question, or read fewer sources",
            )
        return QueryInBudget(short, self._notes(query, short))

    def _without_turns(self, query: Query) -> Query:
        while query.earlier and self.count(query) > self.most_tokens:
            query = replace(query, earlier=query.earlier[1:])
        return query

    def _without_middles(self, query: Query) -> Query:
        """Shortens the longest of the texts that count, again and again, until the prompt fits or too little is left."""
        texts = {"question": query.question}
        if self.instructed or query.mode == "closed":
            texts["instructions"] = query.instructions
        kept = {name: len(text) for name, text in texts.items()}
        while (size := self.count(query)) > self.most_tokens:
            name = max(kept, key=lambda name: kept[name])
            kept[name] = int(kept[name] * min(_SHORTEST_STEP, max(_LONGEST_STEP, self.most_tokens / size)))
            if kept[name] < _LEAST_CHARS:
                return query
            query = _with(query, name, _ends(texts[name], kept[name]))
        return query

    def _notes(self, asked: Query, short: Query) -> tuple[str, ...]:
        limit = f"the prompt may have {self.most_tokens} tokens (serve.max_prompt_tokens)"
        turns = len(asked.earlier) - len(short.earlier)
        notes = [f"{turns} earlier turns were not read: {limit}"] if turns else []
        for name, what in _NAMES.items():
            whole, part = getattr(asked, name), getattr(short, name)
            if part != whole:
                read = len(part) - len(_GAP)
                notes.append(
                    f"the middle of the {what} was not read, {read} of its {len(whole)} characters were: {limit}"
                )
        return tuple(notes)


def _ends(text: str, chars: int) -> str:
    return text[: chars // 2] + _GAP + text[len(text) - chars // 2 :]


def _with(query: Query, name: str, text: str) -> Query:
    return replace(query, question=text) if name == "question" else replace(query, instructions=text)
