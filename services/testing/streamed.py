"""The lexical model behind an engine that batches by itself: the same answers as in a running batch, as streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from cmt_core.generation.engine import EngineLost, StreamedAnswer, Written
from cmt_core.generation.query import AnswerStart, Query
from services.settings import Settings
from services.testing.lexical import LexicalBatch, LexicalModel

__all__ = ["StreamedLexical", "load_streamed_lexical"]


class StreamedLexical(LexicalModel):
    """One word a step for every stream, as a batch of `answer_batch` writes them; once `lost`, nothing is written any more."""

    lost = False

    def __init__(self) -> None:
        super().__init__()
        self._batch: LexicalBatch | None = None
        self.open_streams = 0

    def start(self) -> None:
        """Makes the batch."""
        self._batch = self.answer_batch()

    def close(self) -> None:
        """Throws it away."""
        self._batch = None

    @property
    def batch(self) -> LexicalBatch:
        """The batch; raises EngineLost without one."""
        if self._batch is None or self.lost:
            raise EngineLost("the lexical engine is gone")
        return self._batch

    def prompt_tokens(self, query: Query) -> int:
        """As the batch counts them."""
        return self.batch.prompt_tokens(query)

    def text(self, ids: list[int]) -> str:
        """As the batch writes them."""
        return self.batch.text(ids)

    async def begin(self, query: Query, max_new_tokens: int) -> StreamedAnswer:
        """Lets a query join."""
        started = self.batch.join([query])[0]
        pieces = self._pieces(started, max_new_tokens)
        return StreamedAnswer(started.prompt_tokens, started.weights, pieces, started.together)

    async def _pieces(self, started: AnswerStart, most: int) -> AsyncGenerator[Written, None]:
        self.open_streams += 1
        try:
            (token,), written = started.tokens, 0
            while token is not None:
                written += 1
                yield Written((token,), "length" if written >= most else None)
                await asyncio.sleep(0)
                token = self.batch.step_of(started.row)
            yield Written((), "stop")
        finally:
            self.open_streams -= 1
            if self._batch is not None:
                self._batch.leave(started.row)


def load_streamed_lexical(settings: Settings) -> StreamedLexical:
    """The model factory of this model, for serving with engine vllm where no vLLM can be had."""
    return StreamedLexical()
