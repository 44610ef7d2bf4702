"""The speeds of benchmarks/gpu.py: the compressor against the device's matmul peak, decoding, first token, answers a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.device_speed import best_seconds, long_texts, matmul_flops, settled
from benchmarks.window_flops import checked_window_flops
from cmt_core.checkpoint import Checkpoint
from cmt_core.data.plain_text import read_texts
from cmt_core.fitting.material import packaged_texts
from cmt_core.generation.query import Query
from cmt_core.llm.backbone import Backbone, pick_device
from cmt_core.llm.model_source import resolve_model
from cmt_core.model import CMT
from cmt_core.shipped import CACHE_DIR
from cmt_core.text.windows import Window

if TYPE_CHECKING:
    from benchmarks.gpu import Plan

__all__ = ["load", "measured"]

Keep = Callable[[dict[str, Any]], None]
_SURE, _IN_DOUBT = 2.0, 0.02  # between the retriever's scores: of the second, ψ asks the LLM behind each memory
_READS = (("memory", 1, _SURE), ("memory", 4, _SURE), ("memory", 4, _IN_DOUBT), ("rag", 1, 0.0), ("rag", 4, 0.0))
_DECODED = (1, 4, 16)  # memories at once


@dataclass(frozen=True, slots=True)
class _NoSearch:
    """Nothing is looked up here, so that no encoder is needed."""

    d_key: int = 0


def load(plan: Plan) -> CMT:
    """The LLM with its checkpoint, without an encoder of keys."""
    folder = resolve_model(plan.llm, CACHE_DIR.expanduser(), print)
    backbone = Backbone.load(folder, pick_device(plan.device))
    nothing: Any = _NoSearch()
    return CMT(backbone, Checkpoint.load(Path(plan.checkpoint)), nothing, "speed")


def measured(plan: Plan, keep: Keep, *, fused: bool = False) -> None:
    """Gives `keep` all figures that are there, each time that there are more.

    With `fused` norms and MLPs are compiled by torch.compile, and the compressor alone is measured.
    """
    model = load(plan)
    if fused:
        for layer in model.backbone.model.model.layers:
            for module in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
                module.compile()
    with torch.inference_mode():
        _measure(model, plan, keep, compressor_alone=fused)


def _measure(model: CMT, plan: Plan, keep: Keep, *, compressor_alone: bool) -> None:
    peak = matmul_flops(model.backbone.device, model.backbone.dtype, (plan.matmul, plan.matmul, plan.matmul))
    found: dict[str, Any] = {"dtype": str(model.backbone.dtype), "matmul_tflops": peak / 1e12}
    keep(found)
    found["compressor"] = _compressor(model, plan, peak)
    keep(found)
    if compressor_alone:
        return
    asked = _asked(model)
    found["decoding"] = _decoding(model, [one.memory for one in asked])
    keep(found)
    found["engine"] = []
    for mode, k, gap in _READS:
        for clients in plan.clients:
            many = plan.questions if clients > 1 else max(1, plan.questions // 3)
            queries = _queries(asked, mode, k, gap, max(many, clients))
            _answered(model, queries[: max(clients, 2)], clients, plan.answer_tokens)  # new shapes, before it counts
            figures = _answered(model, queries, clients, plan.answer_tokens)
            found["engine"].append({"reads": mode, "k": k, "in_doubt": gap == _IN_DOUBT, "clients": clients} | figures)
            keep(found)


def _compressor(model: CMT, plan: Plan, peak: float) -> dict[str, Any]:
    """Windows a second from texts, from token ids, and of the pass through the LLM alone; the share is of the second."""
    size, device, prefix = model.config.window_tokens, model.backbone.device, model.encoding_prefix
    texts = long_texts(size, plan.windows)
    windows = [max(model.windows("", text), key=lambda one: len(one.text)) for text in texts]
    ids = [model.prompting.document(window.reading, size) for window in windows]
    batch, mask = model.tokens.padded(ids)
    tokens = round(int(mask.sum()) / len(mask))
    flops = checked_window_flops(model.backbone.model.config, tokens, len(prefix), model.config.code_width)
    model.format.write(batch, mask, prefix)  # the warm-up

    def rate(call: Callable[[], object]) -> float:
        return len(windows) / best_seconds(call, device)

    from_ids = rate(lambda: model.format.write(batch, mask, prefix))
    return {
        "windows": len(windows),
        "tokens": tokens,
        "gflop_a_window": flops / 1e9,
        "windows_per_s": from_ids,
        "share_of_peak": from_ids * flops / peak,
        "windows_per_s_from_text": rate(lambda: model.compress(windows)),
        "windows_per_s_llm_alone": rate(lambda: model.backbone.read(batch, mask, prefix)),
    }


@dataclass(frozen=True, slots=True)
class _Asked:
    """A window with its memory, and a question about it."""

    window: Window
    memory: bytes
    question: str


def _asked(model: CMT) -> list[_Asked]:
    """The packaged articles' first windows."""
    titled = [text.partition("\n")[::2] for text in read_texts(packaged_texts())]
    windows = [model.windows(title, text)[0] for title, text in titled]
    memories = model.compress(windows)
    return [
        _Asked(window, memory.code, f"What is told about this: {title}?")
        for (title, _), window, memory in zip(titled, windows, memories, strict=True)
    ]


def _decoding(model: CMT, memories: Sequence[bytes]) -> dict[str, float]:
    """Milliseconds in which so many memories become keys and values on the device."""
    many = list(islice(cycle(memories), max(_DECODED)))
    return {
        f"ms_{count}": 1e3 * best_seconds(lambda count=count: model.format.read(many[:count]), model.backbone.device)
        for count in _DECODED
    }


def _queries(asked: Sequence[_Asked], mode: Any, k: int, gap: float, many: int) -> list[Query]:
    """Questions about the articles in turn, each with its own and the next k - 1."""
    made = []
    for number in range(many):
        read = [asked[(number + i) % len(asked)] for i in range(k)]
        question = read[0].question
        if mode == "rag":
            made.append(Query(question, "rag", passages=[one.window.reading for one in read]))
        else:
            scores = [-gap * i for i in range(k)]
            made.append(Query(question, "memory", [one.memory for one in read], scores))
    return made


@dataclass(slots=True)
class _Row:
    """An answer under way."""

    asked_at: float
    tokens: int = field(default=1)


def _answered(model: CMT, queries: Sequence[Query], clients: int, answer_tokens: int) -> dict[str, float]:
    """So many clients, each of which asks its next question when it has its answer, on our own running batch."""
    batch, device = model.answer_batch(), model.backbone.device
    left, rows = list(queries), dict[int, _Row]()
    firsts: list[float] = []
    steps: list[float] = []
    answers = 0
    settled(device)
    began = time.perf_counter()
    waiting = [(began, left.pop()) for _ in range(min(clients, len(left)))]
    while waiting or rows:
        if waiting:
            joined = batch.join([query for _, query in waiting])
            settled(device)
            now = time.perf_counter()
            for (asked_at, _), start in zip(waiting, joined, strict=True):
                firsts.append(now - asked_at)
                rows[start.row] = _Row(asked_at, answer_tokens if None in start.tokens else 1)
            waiting = []
        else:
            before = time.perf_counter()
            for row, tokens in batch.step().items():
                rows[row].tokens = answer_tokens if None in tokens else rows[row].tokens + len(tokens)
            steps.append(time.perf_counter() - before)
        for row in [row for row, one in rows.items() if one.tokens >= answer_tokens]:
            batch.leave(row)
            del rows[row]
            answers += 1
            if left:
                waiting.append((time.perf_counter(), left.pop()))
    seconds = time.perf_counter() - began
    return {
        "answers": answers,
        "first_token_ms": 1e3 * statistics.median(firsts),
        "token_ms": 1e3 * statistics.median(steps) if steps else 0.0,
        "answers_per_s": answers / seconds,
    }
