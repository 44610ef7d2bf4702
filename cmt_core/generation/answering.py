"""Answers in a running batch: queries join with what they read, tokens come out, rows leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmt_core.generation.candidates import CandidateBatch
from cmt_core.generation.prompts import QueryPrompts
from cmt_core.generation.query import AnswerStart, Query
from cmt_core.generation.spelling import Speller
from cmt_core.reading.batch import Reading
from cmt_core.reading.contexts import Contexts

__all__ = ["AnswerBatch"]


class AnswerBatch:
    """A running batch of questions that read what `contexts` makes; not thread-safe."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._prompts = QueryPrompts(contexts.tokens.ids, contexts.prompting, contexts.config)
        self._engine = CandidateBatch(contexts.backbone)

    def __len__(self) -> int:
        return len(self._engine)

    def prompt_tokens(self, query: Query) -> int:
        """Tokens that a query gives the LLM to read, texts included."""
        return self._prompts.tokens(query)

    def join(self, queries: Sequence[Query]) -> list[AnswerStart]:
        """Reads the prompts of `queries` and gives what is known of their answers.

        Raises MemoryFormatError for a foreign memory. Whatever it raises, none of `queries` has joined.
        """
        kinds = [
            (query.mode in ("rag", "closed") and query.mode, self._prompts.weight(query) != 1.0) for query in queries
        ]
        started: dict[int, AnswerStart] = {}
        try:
            for kind in dict.fromkeys(kinds):
                members = [i for i, other in enumerate(kinds) if other == kind]
                started.update(zip(members, self._join_alike([queries[i] for i in members]), strict=True))
        except BaseException:
            for one in started.values():
                self.leave(one.row)
            raise
        return [started[i] for i in range(len(queries))]

    def step(self) -> dict[int, list[int | None]]:
        """What is new of every row whose answer has not ended: its next token, None for the end, nothing while its candidates are
        written, and then all of the likeliest. A row stays until it is told to leave."""
        return self._engine.step()

    def leave(self, row: int) -> None:
        """Ends a row."""
        self._engine.leave(row)

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, as far as they go."""
        return self._contexts.tokens.text(ids)

    @torch.inference_mode()
    def _join_alike(self, queries: Sequence[Query]) -> list[AnswerStart]:
        reading = self._read(queries)
        prompts = [self._prompts.prompt(query) for query in queries]
        weights = [self._prompts.weight(query) for query in queries]
        plain = self._contexts.of_nothing(len(queries), prefixed=True).context if weights[0] != 1.0 else None
        spellers = [
            Speller(self._texts_read(reading, row, query), self.text, reading.stop_ids) if query.spelled_from else None
            for row, query in enumerate(queries)
        ]
        sampling = [query.sampling for query in queries]
        candidates = [query.candidates for query in queries]
        joined = self._engine.join(
            reading.context, prompts, sampling, reading.stop_ids, plain, weights, spellers, candidates
        )
        try:
            return [
                AnswerStart(
                    one.row,
                    reading.prompt_tokens(i, prompts[i]),
                    reading.weights(i, one.attention),
                    one.tokens,
                    reading.two(i),
                )
                for i, one in enumerate(joined)
            ]
        except BaseException:
            for one in joined:
                self.leave(one.row)
            raise

    @staticmethod
    def _texts_read(reading: Reading, row: int, query: Query) -> list[str]:
        """Of the texts that an answer may be spelled from those of what the LLM reads, as memories or as texts."""
        return list(dict.fromkeys([*reading.texts_read(row, query.spelled_from), *query.passages]))

    def _read(self, queries: Sequence[Query]) -> Reading:
        match queries[0].mode:
            case "rag":
                return self._contexts.of_text([query.passages for query in queries])
            case "closed":
                return self._contexts.of_nothing(len(queries), prefixed=False)
            case _:
                return self._contexts.of_memories(
                    [query.question for query in queries],
                    [query.memories for query in queries],
                    _scores(queries),
                    [query.completed_by or [None] * len(query.memories) for query in queries],
                )


def _scores(queries: Sequence[Query]) -> list[Sequence[float]] | None:
    """The queries' scores; None when any has none."""
    given = [query.scores for query in queries if query.scores is not None]
    return given if len(given) == len(queries) else None
