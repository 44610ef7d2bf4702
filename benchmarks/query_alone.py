"""The same questions without HTTP and Ray: transformers' own `generate`, one after the other, and the engine by itself."""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.query_clients import MODES, console
from cmt_core.data.qa import QAExample
from cmt_core.llm.model_source import resolve_model
from cmt_core.model import CMT
from cmt_core.text.prompt import INSTRUCTION, question_text
from services.query.engine.messages import Ask, Delta, Event, Reply
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.query.ray_serve import app
from services.settings import Settings

__all__ = ["in_process", "plain_loop", "stock_model"]


def stock_model(settings: Settings, cmt: CMT) -> Any:
    """The LLM as transformers loads it: ours has its weights packed and its attention grouped (cmt_core/llm/cpu_kernels.py)."""
    folder = resolve_model(settings.model.llm, settings.model.cache_dir.expanduser(), console.print)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=cmt.backbone.dtype, attn_implementation="sdpa")
    return model.eval().to(cmt.backbone.device)


def plain_loop(
    cmt: CMT, model: Any, examples: Sequence[QAExample], passages: dict[str, str], mode: str, k: int
) -> float | None:
    """Answers a second of `generate` alone, one question after the other, with k articles in the prompt (RAG) or none."""
    if mode == "memory":
        return None
    others = list(passages.values())
    tokenizer = cmt.backbone.tokenizer
    newlines = [ids[0] for text in ("\n", "\n\n") if len(ids := cmt.tokens.ids(text)) == 1]
    stops = [tokenizer.eos_token_id, *newlines]  # as the service ends its answers

    def answer(number: int, example: QAExample) -> None:
        texts = [passages[example.doc_id], *others[number : number + k - 1]] if mode == "rag" else []
        prompt = (INSTRUCTION + "\n\n".join(texts) if texts else "") + question_text(example.question)
        ids = tokenizer(prompt, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            model.generate(
                **ids, max_new_tokens=32, do_sample=False, eos_token_id=stops, pad_token_id=tokenizer.eos_token_id
            )

    answer(0, examples[0])  # warm
    started = time.perf_counter()
    for number, example in enumerate(examples):
        answer(number, example)
    rate = len(examples) / (time.perf_counter() - started)
    console.print(f"plain generate, {mode} k={k}: {rate:.2f} answers/s")
    return round(rate, 3)


def in_process(settings: Settings, cmt: CMT, questions: Sequence[str]) -> dict[str, float]:
    """Seconds to the first text of an answer by mode, and of each further one (`step`): the engine of a replica by itself."""
    scheduler = Scheduler(cmt, app.open_bank(settings, cmt), SchedulerOptions(min_score=-1.0))
    try:
        times = {
            f"{mode}_k{k}": [_inside(scheduler, question, mode, k)[0] for question in questions] for mode, k in MODES
        }
        steps = [_inside(scheduler, question, "closed", 1)[1] for question in questions]
    finally:
        scheduler.stop()
    return {name: round(statistics.median(own), 4) for name, own in (times | {"step": steps}).items()}


def _inside(scheduler: Scheduler, question: str, mode: Any, k: int) -> tuple[float, float]:
    """Seconds to the first text, and from there on for each token."""
    came: queue.Queue[tuple[float, Event]] = queue.Queue()
    started = time.perf_counter()
    scheduler.submit(Ask(question, mode, top_k=k), lambda event: came.put((time.perf_counter(), event)))
    first_s, event = came.get(timeout=300.0)
    at_s = first_s
    while isinstance(event, Delta):
        at_s, event = came.get(timeout=300.0)
    if not isinstance(event, Reply):
        raise RuntimeError(f"no answer in-process: {event}")
    return first_s - started, (at_s - first_s) / max(1, event.completion_tokens - 1)
