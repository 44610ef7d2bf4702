"""vLLM's AsyncLLM behind the seam of `cmt_core.generation.engine`."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from cmt_core.errors import ConfigError, MemoryFormatError, MissingPackageError, one_line
from cmt_core.generation.engine import EngineLost, Look, PackedRequest, Written
from cmt_core.memory.packed_context import PackedContext
from cmt_core.vllm_engine.placeholders import PARAMS_KEY, PLACEHOLDER, SPELLED_KEY
from cmt_core.vllm_engine.versions import require_supported

__all__ = ["VLLMEngine", "connector_config", "engine_arguments"]

_OURS = frozenset({"model", "kv_transfer_config", "disable_hybrid_kv_cache_manager", "skip_tokenizer_init"})
_LEAST_TOP_P = 1e-6
_CORE_BEHIND = 10  # steps of niceness

_log = logging.getLogger(__name__)


def connector_config(checkpoint: Path, bits_per_token: int | None = None) -> dict[str, Any]:
    """vLLM's `kv_transfer_config` that gives it the memories of the checkpoint in a folder."""
    extra: dict[str, Any] = {"checkpoint": str(checkpoint)}
    if bits_per_token is not None:
        extra["bits_per_token"] = bits_per_token
    return {
        "kv_connector": "MemoryConnector",
        "kv_connector_module_path": "cmt_core.vllm_engine.connector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": extra,
    }


def engine_arguments(
    llm: Path, checkpoint: Path, bits_per_token: int | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The engine's arguments: ours, and those given. Raises ConfigError for one that is ours."""
    if taken := sorted(_OURS & given.keys()):
        raise ConfigError(f"vLLM's argument {taken[0]} is set here: leave it out")
    return {
        **given,
        "model": str(llm),
        "skip_tokenizer_init": True,
        "disable_hybrid_kv_cache_manager": True,
        "kv_transfer_config": connector_config(checkpoint, bits_per_token),
    }


class VLLMEngine:
    """Answers and looks of one vLLM engine, whose core is another process; see StreamEngine. Belongs to one event loop."""

    def __init__(self, engine: Any) -> None:
        """`engine` is vLLM's AsyncLLM with the memory connector."""
        self._engine = engine
        self._longest = int(engine.model_config.max_model_len)
        self._vocabulary = int(engine.model_config.get_vocab_size())

    @classmethod
    def start(
        cls, llm: Path, checkpoint: Path, bits_per_token: int | None = None, arguments: Mapping[str, Any] | None = None
    ) -> VLLMEngine:
        """Starts an engine and waits until it can answer; needs a running event loop.

        `arguments` are vLLM's own (max_model_len, tensor_parallel_size ...). Raises MissingPackageError without vLLM, ConfigError
        for arguments or an LLM that it refuses.
        """
        _environment()
        try:
            import vllm
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise MissingPackageError(
                f"engine vllm needs an environment of its own with vLLM in it ({one_line(error)}): docs/serving.md"
            ) from None
        try:
            require_supported(vllm.__version__)
            _require_kernels()
            named = engine_arguments(llm, checkpoint, bits_per_token, arguments or {})
            given = AsyncEngineArgs(**named)
            config = given.create_engine_config()
            config.model_config.logits_processors = [
                *(config.model_config.logits_processors or []),
                *_spelling(config),
            ]
            engine = AsyncLLM.from_vllm_config(
                config, enable_log_requests=given.enable_log_requests, disable_log_stats=given.disable_log_stats
            )
            _put_core_behind_workers(engine)
            return cls(engine)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"vLLM can't start: {one_line(error)}") from None

    async def stream(self, request: PackedRequest) -> AsyncGenerator[Written, None]:
        """See StreamEngine."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        ids = self._checked(request.context, request.prompt)
        params = SamplingParams(
            temperature=max(0.0, sampling.temperature),
            top_p=min(1.0, max(_LEAST_TOP_P, sampling.top_p)),
            seed=sampling.seed,
            max_tokens=min(request.max_new_tokens, self._longest - len(ids)),
            stop_token_ids=sorted(request.stop_ids),
            ignore_eos=True,  # `stop_ids` say what ends an answer
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_reading_prefix_cache=False,
            extra_args=_extra(request.context, request.spelled_from),
        )
        async for output in self._outputs(ids, params, request.context.salt):
            made = output.outputs[0]
            if made.finish_reason in ("error", "abort"):
                raise MemoryFormatError("the memories of this question could not be loaded by the engine")
            ended = made.finish_reason == "stop"
            tokens = tuple(made.token_ids)
            if ended and tokens and tokens[-1] in request.stop_ids:
                tokens = tokens[:-1]
            yield Written(tokens, "stop" if ended else "length" if made.finish_reason else None)

    async def log_likelihoods(self, looks: Sequence[Look]) -> list[float]:
        """See StreamEngine."""
        return list(await asyncio.gather(*(self._log_likelihood(look) for look in looks)))

    async def check_health(self) -> None:
        """Raises EngineLost when the core has ended."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._engine.check_health()
        except EngineDeadError as error:
            raise EngineLost(one_line(error)) from None

    @property
    def lost(self) -> bool:
        """Whether the core has ended."""
        return bool(self._engine.errored)

    async def drop_prefix_cache(self) -> None:
        """Forgets the pages of earlier prompts, as a measurement of new questions wants it; call it while nothing runs."""
        if not await self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM keeps its prefix cache while answers are being written")

    def close(self) -> None:
        """Ends the core's process; answers under way end with it."""
        self._engine.shutdown()

    async def _log_likelihood(self, look: Look) -> float:
        """By the log-probabilities of the prompt's own tokens, of which the last ones are the words.

        Tokens that the prefix cache has get none, so every look has a salt of its own.
        """
        from vllm import SamplingParams

        if not look.head or not look.words:
            raise ValueError("a look needs a token before its words, and words")
        ids = self._checked(look.context, (*look.head, *look.words))
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0,
            ignore_eos=True,
            detokenize=False,
            skip_reading_prefix_cache=False,  # True, its default here, would switch the loading of memories off
            extra_args=_extra(look.context),
        )
        nats: float | None = None
        async for output in self._outputs(ids, params, f"{look.context.salt}/{uuid.uuid4().hex}"):
            if output.outputs and output.outputs[0].finish_reason in ("error", "abort"):
                raise MemoryFormatError("a memory could not be loaded by the engine")
            if output.prompt_logprobs:
                own = output.prompt_logprobs[-len(look.words) :]
                nats = float(sum(one[id].logprob for one, id in zip(own, look.words, strict=True)))
        if nats is None:
            raise RuntimeError("vLLM gave no log-probabilities of a prompt")
        return nats

    async def _outputs(self, ids: list[int], params: Any, salt: str) -> AsyncGenerator[Any, None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = {"prompt_token_ids": ids, "cache_salt": salt}
        try:
            async with aclosing(self._engine.generate(prompt, params, uuid.uuid4().hex)) as outputs:
                async for output in outputs:
                    yield output
        except EngineDeadError as error:
            raise EngineLost(one_line(error)) from None

    def _checked(self, context: PackedContext, prompt: Sequence[int]) -> list[int]:
        """Placeholders and the prompt. Raises ValueError for one that is too long, or a token that the LLM does not have."""
        context.check()
        if not prompt:
            raise ValueError("a prompt needs a token")
        if any(not 0 <= id < self._vocabulary for id in prompt):
            raise ValueError("a prompt's token is not one of the LLM's")
        size = context.columns + len(prompt)
        if size >= self._longest:
            raise ValueError(f"memories and prompt have {size} tokens, and vLLM's max_model_len is {self._longest}")
        return [PLACEHOLDER] * context.columns + list(prompt)


def _extra(context: PackedContext, spelled_from: Sequence[str] = ()) -> dict[str, Any] | None:
    extra: dict[str, Any] = {}
    if context.columns:
        extra["kv_transfer_params"] = {PARAMS_KEY: context.to_params()}
    if spelled_from:
        extra[SPELLED_KEY] = list(spelled_from)
    return extra or None


def _spelling(config: Any) -> list[str]:
    """The hook that spells answers, of the model runner that this configuration gets."""
    if config.speculative_config is not None:
        _log.warning(
            "with speculative decoding, vLLM takes no hook for logits: answers are not spelled from their sources"
        )
        return []
    if not getattr(config, "use_v2_model_runner", False):
        return ["cmt_core.vllm_engine.spelling:SpellingProcessor"]
    try:
        importlib.import_module("cmt_core.vllm_engine.spelling_v2")
    except ImportError:
        _log.warning("this vLLM's model runner V2 has no hook for logits: answers are not spelled from their sources")
        return []
    return ["cmt_core.vllm_engine.spelling_v2:SpellingProcessorV2"]


def _environment() -> None:
    """What vLLM reads from its environment; keeps what is set."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # forked workers would have all modules of this process, and vLLM stumbles over numba's, which bm25s loads
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # pinned threads are 2 to 3 times slower beside others
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def _require_kernels() -> None:
    """Raises ConfigError with the loader's reason: vLLM only warns, and its worker ends later for another one."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        try:
            importlib.import_module("vllm._C")
        except ImportError as error:
            raise ConfigError(f"vLLM's kernels can't be loaded: {one_line(error)}") from None


def _put_core_behind_workers(engine: Any) -> None:
    """On a CPU: the core's main thread waits for a step in a loop that never sleeps, on a core that the step computes on.

    So it runs at a lower priority than the workers (decision 0163). Where vLLM keeps its processes elsewhere, nothing is done.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    try:
        processes = engine.engine_core.resources.engine_manager.processes
        for process in processes:
            own = os.getpriority(os.PRIO_PROCESS, process.pid)
            os.setpriority(os.PRIO_PROCESS, process.pid, min(19, own + _CORE_BEHIND))
    except (AttributeError, OSError) as error:
        _log.warning("vLLM's core keeps its priority, which costs answers on a CPU: %s", one_line(error))
