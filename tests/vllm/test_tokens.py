"""vLLM writes our own engine's answers token by token in float32, whatever else runs in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmt_core.errors import ConfigError
from cmt_core.generation.query import Sampling
from cmt_core.text.spelling import SourceSpans
from tests.vllm.parts import NEWS, QUESTIONS, Case, Parts, RunningEngine, real_parts, tiny_parts


def expected(cases: list[Case]) -> list[tuple[list[int], str]]:
    return [(case.ids, case.finish) for case in cases]


@pytest.fixture(scope="module", params=["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def parts(request: pytest.FixtureRequest) -> Parts:
    """The shipped checkpoint, read behind its prefix, and a fitted one, read in its chat template."""
    return real_parts(request.param)


@pytest.fixture(scope="module")
def engine(parts: Parts) -> Iterator[RunningEngine]:
    made = RunningEngine(parts.llm, parts.checkpoint)
    yield made
    made.close()


@pytest.fixture(scope="module")
def cases(parts: Parts) -> list[Case]:
    return parts.cases(40)


def test_answers_are_ours_one_by_one_and_forty_at_once(engine: RunningEngine, cases: list[Case]) -> None:
    assert [engine.written(case.request)[0] for case in cases[::5]] == expected(cases[::5])
    assert engine.written(*(case.request for case in cases)) == expected(cases)


OTHER_NEWS = ("The bridge cost 21 million crowns, said Mayor Lundqvist.", "Researchers had found 24 whales.")


@pytest.fixture(scope="module")
def spelled(parts: Parts) -> list[Case]:
    """Questions whose answers are to be spans of texts, of their sources or of others, which want other tokens."""
    texts = [(f"{NEWS[i][0]}\n{NEWS[i][1]}", *OTHER_NEWS[: i % 2 * 2]) for i in range(5)]
    pairs = [(question, i) for i in range(5) for question in QUESTIONS]
    own = [parts.case(question, [parts.memories[i]], 12, texts[i]) for question, i in pairs]
    return [*own, *(parts.case(question, [parts.memories[0]], 12, OTHER_NEWS) for question in QUESTIONS)]


def test_spelled_answers_are_ours_beside_free_ones(
    engine: RunningEngine, parts: Parts, cases: list[Case], spelled: list[Case]
) -> None:
    free = [case.ids for case in (parts.case(question, [parts.memories[0]], 12) for question in QUESTIONS)]
    assert free != [case.ids for case in spelled[-len(QUESTIONS) :]]
    assert engine.written(*(case.request for case in spelled)) == expected(spelled)
    mixed = [case for pair in zip(cases, spelled, strict=False) for case in pair]
    assert engine.written(*(case.request for case in mixed)) == expected(mixed)


def test_drawn_answers_are_spelled_too(engine: RunningEngine, parts: Parts, spelled: list[Case]) -> None:
    drawn = [
        dataclasses.replace(case.request, sampling=Sampling(temperature=1.5, top_p=0.95, seed=seed))
        for case in spelled[:8]
        for seed in range(3)
    ]
    answers = engine.written(*drawn)
    ended = [
        (parts.cmt.tokens.text(ids), request)
        for (ids, finish), request in zip(answers, drawn, strict=True)
        if finish == "stop"
    ]
    assert len({text for text, _ in ended}) > len(ended) / 3
    assert sum(SourceSpans(request.spelled_from).has(text) for text, request in ended) >= 0.8 * len(ended)


def test_likelihood_of_a_question_behind_a_memory_is_ours(engine: RunningEngine, parts: Parts) -> None:
    looks = [parts.look(question, memory) for question in QUESTIONS[:3] for memory in parts.memories[:3]]
    engine.written(
        parts.cases(1)[0].request
    )  # the same memory is in pages: what was found there has no log-probabilities
    for _ in range(2):
        assert engine.looked(*(look for look, _ in looks)) == pytest.approx([ours for _, ours in looks], abs=0.01)


@pytest.mark.parametrize("kind", ["free", "spelled"])
def test_answers_are_ours_under_preemption_and_chunked_prefill(
    kind: str, parts: Parts, cases: list[Case], spelled: list[Case]
) -> None:
    """Pages for three to five of the questions, and prompts read 64 tokens a step; an answer is taken up again where it stood."""
    asked = cases if kind == "free" else spelled
    pages = 8 * parts.cmt.backbone.shape.width * 4 * 128 * (2 if parts.cmt.follows_instructions else 1)
    small = RunningEngine(
        parts.llm, parts.checkpoint, kv_cache_memory_bytes=pages, max_num_batched_tokens=64, max_model_len=704
    )
    try:
        assert small.written(*(case.request for case in asked)) == expected(asked)
    finally:
        small.close()


FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {},  # norms of keys
    "Mistral-sliding": {},  # windows in all layers
    "Gemma3": {},  # windows in some layers, and two kinds of rotary
    "SmolLM3": {},  # layers that are not turned
    "Llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_answers_of_a_family_are_ours(family: str, tmp_path: Path) -> None:
    tiny = tiny_parts(family, tmp_path, FAMILIES[family])
    engine = RunningEngine(tiny.llm, tiny.checkpoint, max_model_len=256, kv_cache_memory_bytes=2**26)
    try:
        assert engine.written(*(case.request for case in tiny.cases)) == expected(tiny.cases)
    finally:
        engine.close()


def test_a_family_that_vllm_itself_refuses_is_one_line(tmp_path: Path) -> None:
    """Qwen3 with windows in some layers: our own engine reads it, vLLM 0.32 does not load it."""
    tiny = tiny_parts("Qwen3-mixed", tmp_path, {})
    with pytest.raises(ConfigError, match=r"vLLM can't start: [^\n]+$"):
        RunningEngine(tiny.llm, tiny.checkpoint, max_model_len=256, kv_cache_memory_bytes=2**26)
