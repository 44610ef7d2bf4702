"""A ray.serve.llm application with a memory: our connector among its engine's arguments, and one step before its LLM.

    cmt ingest --until-caught-up                        # or any other way to fill a bank
    .venv-vllm/bin/python examples/ray_serve_llm.py     # on port 8000, from the bank of the settings
    curl localhost:8000 -H 'Content-Type: application/json' -d '{"question": "Who opened the bridge?"}'

For teams that serve LLMs so already. What is new to such an application stands in `llm_config`: `connector_config`, one group of
pages, no chunk of it patched. `WithMemory` finds memories in the bank, lets ψ choose among them with looks through the same LLM,
and sends the question's tokens with the packed memories. Run it in vLLM's environment (docs/serving.md).
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.openai_api_models import CompletionRequest
from starlette.requests import Request

from cmt_core.generation.engine import Look, PackedRequest, Written
from cmt_core.generation.query import Query
from cmt_core.memory.packed_context import PackedContext
from cmt_core.vllm_engine.engine import connector_config
from cmt_core.vllm_engine.packed_model import PackedModel
from cmt_core.vllm_engine.placeholders import PARAMS_KEY, PLACEHOLDER

MODEL_ID = "llm-with-memory"


def llm_config(model: PackedModel, **more: Any) -> LLMConfig:
    """An application's own configuration, and what gives its engine memories."""
    engine = {
        "kv_transfer_config": connector_config(model.checkpoint_folder),
        "disable_hybrid_kv_cache_manager": True,
        "max_model_len": 2048,
        **more.pop("engine_kwargs", {}),
    }
    source = {"model_id": MODEL_ID, "model_source": str(model.llm.path)}
    return LLMConfig(model_loading_config=source, engine_kwargs=engine, **more)


@serve.deployment
class WithMemory:
    """POST {"question": ...} gives {"answer": ..., "sources": [...]}; `llm` is ray.serve.llm's own deployment."""

    def __init__(self, llm: Any) -> None:
        from services.query.ray_serve.app import open_bank
        from services.settings import load_settings

        self._llm = llm.options(stream=True)
        self._model = PackedModel.load()
        self._bank = open_bank(load_settings(), self._model)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """The answer of the LLM behind what the bank holds about the question."""
        question = str((await request.json())["question"])
        hits = await asyncio.to_thread(self._found, question)
        if not hits:
            return {"answer": "I don't know.", "sources": []}
        query = Query(
            question, memories=[hit.memory for hit in hits], scores=[hit.rank for hit in hits], memory_weight=1.0
        )
        prepared = await self._model.prepare(query, self._model.answer_tokens, self)
        tokens = [token async for piece in self.stream(prepared.request) for token in piece.tokens]
        return {"answer": self._model.text(tokens).strip(), "sources": [hit.title or hit.doc_id for hit in hits]}

    async def stream(self, request: PackedRequest) -> AsyncGenerator[Written, None]:
        """The answer's tokens, at once: what `cmt_core.generation.engine.StreamEngine` asks for."""
        choice = await self._completed(
            request.context,
            request.prompt,
            request.context.salt,
            max_tokens=request.max_new_tokens,
            stop_token_ids=sorted(request.stop_ids),
            ignore_eos=True,
            return_token_ids=True,
        )
        tokens = tuple(token for token in choice.token_ids if token not in request.stop_ids)
        yield Written(tokens, "stop" if choice.finish_reason == "stop" else "length")

    async def log_likelihoods(self, looks: Sequence[Look]) -> list[float]:
        """How likely the LLM finds words behind a memory, for ψ."""
        return list(await asyncio.gather(*(self._log_likelihood(look) for look in looks)))

    async def _log_likelihood(self, look: Look) -> float:
        salt = f"{look.context.salt}/{uuid.uuid4().hex}"  # tokens in the prefix cache get no log-probabilities
        choice = await self._completed(
            look.context, (*look.head, *look.words), salt, max_tokens=1, prompt_logprobs=0, ignore_eos=True
        )
        own = choice.prompt_logprobs[-len(look.words) :]
        return math.fsum(one[word].logprob for one, word in zip(own, look.words, strict=True))

    async def _completed(self, context: PackedContext, prompt: Sequence[int], salt: str, **more: Any) -> Any:
        asked = CompletionRequest(
            model=MODEL_ID,
            prompt=[PLACEHOLDER] * context.columns + list(prompt),
            temperature=0.0,
            cache_salt=salt,
            kv_transfer_params={PARAMS_KEY: context.to_params()},
            **more,
        )
        async for reply in self._llm.completions.remote(asked):
            if not hasattr(reply, "choices"):
                raise RuntimeError(f"the LLM refused: {reply}")
            return reply.choices[0]
        raise RuntimeError("the LLM gave no answer")

    def _found(self, question: str) -> list[Any]:
        keys = self._model.query_keys([question])
        (hits,) = self._bank.search(
            keys.vectors,
            self._model.default_top_k,
            "default",
            None,
            None,
            texts=[question],
            tokens=keys.tokens,
            every_chunk=False,
        )
        return [hit for hit in hits if hit.score >= self._model.min_score]


def application(**more: Any) -> Any:
    """The Serve application; `more` goes to LLMConfig."""
    return WithMemory.bind(build_llm_deployment(llm_config(PackedModel.load(), **more)))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    serve.run(application())
    while True:
        time.sleep(3600)
