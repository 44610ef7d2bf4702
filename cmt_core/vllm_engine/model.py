"""A checkpoint, its prompts and vLLM as one model that answers queries as streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmt_core.generation.engine import StreamedAnswer
from cmt_core.generation.query import Query
from cmt_core.retrieval.late_interaction import QueryKeys
from cmt_core.vllm_engine.engine import VLLMEngine
from cmt_core.vllm_engine.packed_model import PackedModel

__all__ = ["VLLMModel"]


class VLLMModel:
    """`packed` asks, and a vLLM engine with `arguments` answers, from `start` on."""

    def __init__(self, packed: PackedModel, arguments: Mapping[str, Any]) -> None:
        self.packed = packed
        self._arguments = dict(arguments)
        self._engine: VLLMEngine | None = None
        self.model_id = packed.model_id
        self.d_key = packed.d_key
        self.memory_bytes = packed.memory_bytes
        self.default_top_k = packed.default_top_k
        self.min_score = packed.min_score
        self.answer_tokens = packed.answer_tokens
        self.follows_instructions = packed.follows_instructions

    def looked_at(self, k: int) -> int:
        """As `CMT.looked_at`: vLLM gives no states to look at."""
        return k

    def start(self) -> None:
        """Starts vLLM, which takes half a minute and more; needs a running event loop. Raises CoreError."""
        packed = self.packed
        self._engine = VLLMEngine.start(
            packed.llm.path, packed.checkpoint_folder, packed.bits_per_token, self._arguments
        )

    @property
    def engine(self) -> VLLMEngine:
        """The engine, once it was started."""
        if self._engine is None:
            raise RuntimeError("the engine was not started")
        return self._engine

    @property
    def lost(self) -> bool:
        """Whether the engine's core has ended."""
        return self._engine is not None and self._engine.lost

    def close(self) -> None:
        """Ends the engine."""
        if self._engine is not None:
            self._engine.close()

    def query_keys(self, questions: Sequence[str]) -> QueryKeys:
        """What B questions look for."""
        return self.packed.query_keys(questions)

    def prompt_tokens(self, query: Query) -> int:
        """Tokens that a query gives the LLM to read, texts included."""
        return self.packed.prompts.tokens(query)

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, as far as they go."""
        return self.packed.text(ids)

    async def begin(self, query: Query, max_new_tokens: int) -> StreamedAnswer:
        """Chooses what is read, with looks where the retriever leaves a doubt, and hands it to the engine."""
        prepared = await self.packed.prepare(query, max_new_tokens, self.engine)
        pieces = self.engine.stream(prepared.request)
        return StreamedAnswer(prepared.prompt_tokens, prepared.weights, pieces, prepared.together)
