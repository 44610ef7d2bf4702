"""The tokens of a query's prompt, the same for every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cmt_core.config import MemoryConfig
from cmt_core.generation.query import Query
from cmt_core.reading.prompting import Prompting

__all__ = ["QueryPrompts"]


@dataclass(frozen=True, slots=True)
class QueryPrompts:
    """One checkpoint's way of asking queries; `tokens_of` gives a text's ids."""

    tokens_of: Callable[[str], list[int]]
    prompting: Prompting
    config: MemoryConfig

    def tokens(self, query: Query) -> int:
        """Tokens that a query gives the LLM to read, texts included."""
        return len(self.prompt(query)) + (len(self.texts(query)) if query.mode == "rag" else 0)

    def prompt(self, query: Query) -> list[int]:
        """What follows a query's context: in `hybrid` with its texts, and with the beginning of an answer that is to go on."""
        asked = (query.question, query.earlier, query.instructions)
        begun = self.tokens_of(query.begun) if query.begun else []
        if query.mode == "closed":
            return [*self.prompting.closed(*asked), *begun]
        return [*(self.texts(query) if query.mode == "hybrid" else []), *self.prompting.question(*asked), *begun]

    def texts(self, query: Query) -> list[int]:
        """A query's passages as text."""
        return self.prompting.texts(query.passages)

    def stop_ids(self, query: Query) -> set[int]:
        """What ends an answer."""
        return self.prompting.closed_stop_ids() if query.mode == "closed" else self.prompting.stop_ids

    def weight(self, query: Query) -> float:
        """The share of the memory's scores; the rest are those of the same prompt without a memory."""
        if query.mode == "closed":
            return 1.0
        if query.memory_weight is not None:
            return query.memory_weight
        return self.config.decoding_weight if query.mode == "memory" else 1.0
