"""Memories that differ never meet, what can't be loaded ends one request alone, and a lost core is told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cmt_core.errors import ConfigError, MemoryFormatError
from cmt_core.generation.engine import EngineLost, PackedRequest
from cmt_core.vllm_engine.placeholders import PARAMS_KEY, PLACEHOLDER
from tests.vllm.parts import QUESTIONS, Parts, RunningEngine, real_parts
from tests.waiting import until


@pytest.fixture(scope="module")
def parts() -> Parts:
    return real_parts("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def engine(parts: Parts) -> Iterator[RunningEngine]:
    made = RunningEngine(parts.llm, parts.checkpoint)
    yield made
    made.close()


async def raw(engine: RunningEngine, prompt: list[int], salt: str | None, params: object, **sampling: object) -> str:
    """What a client with vLLM's own interface gets: how its answer ended."""
    from vllm import SamplingParams

    extra = None if params is None else {"kv_transfer_params": {PARAMS_KEY: params}}
    asked = SamplingParams(max_tokens=4, temperature=0.0, detokenize=False, extra_args=extra, **sampling)
    given = {"prompt_token_ids": prompt} | ({} if salt is None else {"cache_salt": salt})
    last = ""
    async for output in engine.engine._engine.generate(given, asked, f"raw-{time.monotonic_ns()}"):
        last = str(output.outputs[0].finish_reason)
    return last


def test_equal_questions_behind_other_memories_never_share_a_page(engine: RunningEngine, parts: Parts) -> None:
    """In both orders, again and again: pages are cached under the memories' own name."""
    question = "What happened on Monday?"
    cases = [parts.case(question, [parts.memories[i]]) for i in (0, 1, 2, 0, 1)]
    assert len({tuple(case.ids) for case in cases}) > 1
    for _ in range(2):
        assert engine.written(*(case.request for case in cases)) == [(case.ids, case.finish) for case in cases]
        for case in reversed(cases):
            assert engine.written(case.request) == [(case.ids, case.finish)]


def test_foreign_memory_ends_its_own_request_alone(engine: RunningEngine, parts: Parts) -> None:
    good = parts.cases(16)
    bad = replace(good[0].request.context, memories=(b"\xff" * parts.cmt.memory_bytes,))
    longer = replace(good[1].request.context, runs=(replace(good[1].request.context.runs[0], stop=250, position=24),))
    longer = replace(longer, next_position=300)
    mixed: list[PackedRequest] = []
    for case in good:
        mixed += [case.request, replace(good[0].request, context=bad), replace(good[1].request, context=longer)]
    got = engine.written(*mixed)
    assert got[::3] == [(case.ids, case.finish) for case in good]
    assert all(isinstance(one, MemoryFormatError) for one in (*got[1::3], *got[2::3]))
    assert engine.written(good[0].request) == [(good[0].ids, good[0].finish)]


@pytest.mark.parametrize("broken", ["no placeholders", "another salt", "no salt", "a path", "too few", "nothing"])
def test_request_that_is_not_what_it_says_is_never_answered(engine: RunningEngine, parts: Parts, broken: str) -> None:
    """By vLLM's own interface, as an HTTP client of ray.serve.llm could send it."""
    request = parts.cases(1)[0].request
    context = request.context
    params = context.to_params()
    prompt, salt = [PLACEHOLDER] * context.columns + list(request.prompt), context.salt
    match broken:
        case "no placeholders":
            prompt = [5] * context.columns + list(request.prompt)
        case "another salt":
            salt = "0" * 64
        case "no salt":
            salt = None  # type: ignore[assignment]
        case "a path":
            params["memories"] = ["/etc/passwd"]
        case "too few":
            prompt = [PLACEHOLDER] * 3
        case "nothing":
            params = {}
    assert engine.run(raw(engine, prompt, salt, params)) == "error"
    assert engine.run(raw(engine, list(request.prompt), None, None)) in ("stop", "length")


def test_prompt_log_probabilities_asked_for_in_vllms_own_way_are_behind_the_memory(
    engine: RunningEngine, parts: Parts
) -> None:
    """Asking for them switches the reading of the prefix cache off, and must not switch memories off with it."""
    from vllm import SamplingParams

    look, ours = parts.look(QUESTIONS[0], parts.memories[0])
    ids = [PLACEHOLDER] * look.context.columns + [*look.head, *look.words]
    params = SamplingParams(
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        extra_args={"kv_transfer_params": {PARAMS_KEY: look.context.to_params()}},
    )

    async def ask() -> float:
        async for output in engine.engine._engine.generate(
            {"prompt_token_ids": ids, "cache_salt": look.context.salt}, params, f"own-{time.monotonic_ns()}"
        ):
            own = output.prompt_logprobs[-len(look.words) :]
        return sum(one[id].logprob for one, id in zip(own, look.words, strict=True))

    assert engine.run(ask()) == pytest.approx(ours, abs=0.01)


def test_lengths_and_tokens_are_refused_before_the_engine_sees_them(engine: RunningEngine, parts: Parts) -> None:
    request = parts.cases(1)[0].request
    long, foreign, empty = (replace(request, prompt=prompt) for prompt in ((5,) * 2048, (10**9,), ()))
    refused = engine.written(long, foreign, empty)
    assert [type(one) for one in refused] == [ValueError] * 3
    assert "max_model_len is 2048" in str(refused[0])


def test_closed_stream_frees_its_place(engine: RunningEngine, parts: Parts) -> None:
    request = replace(parts.cases(1)[0].request, max_new_tokens=1500, stop_ids=frozenset())

    async def leave() -> None:
        async for _ in engine.engine.stream(request):
            break

    engine.run(leave())
    until(lambda: engine.engine._engine.get_num_unfinished_requests() == 0)


def test_sampling_follows_its_seed(engine: RunningEngine, parts: Parts) -> None:
    from cmt_core.generation.query import Sampling

    request = replace(parts.cases(1)[0].request, stop_ids=frozenset(), max_new_tokens=12)
    drawn = [replace(request, sampling=Sampling(1.5, 0.95, seed)) for seed in (1, 1, 2)]
    one, same, other = engine.written(*drawn)
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"model": "x"}, "model is set here"),
        ({"max_model_len": 10**6}, "max_model_len|longer|greater"),
    ],
)
def test_arguments_that_vllm_refuses_are_one_line(parts: Parts, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RunningEngine(parts.llm, parts.checkpoint, **arguments)


def children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in done.stdout.split()]


@pytest.mark.parametrize("victim", ["core", "worker"])
def test_killed_core_or_worker_is_told_to_all_who_wait(parts: Parts, victim: str) -> None:
    before = set(children(os.getpid()))
    doomed = RunningEngine(parts.llm, parts.checkpoint)
    core = next(
        pid
        for pid in set(children(os.getpid())) - before
        if "EngineCore" in subprocess.run(["ps", "-o", "args=", str(pid)], capture_output=True, text=True).stdout
    )
    request = replace(parts.cases(1)[0].request, max_new_tokens=1500, stop_ids=frozenset())

    async def ask() -> None:
        async for _ in doomed.engine.stream(request):
            if not killed.is_set():
                killed.set()
                os.kill(core if victim == "core" else children(core)[0], signal.SIGKILL)

    async def ask_twice() -> list[BaseException | None]:
        return await asyncio.gather(ask(), ask(), return_exceptions=True)

    killed = asyncio.Event()
    ends = doomed.run(ask_twice())
    assert [type(end) for end in ends] == [EngineLost] * 2
    assert doomed.engine.lost
    doomed.close()
