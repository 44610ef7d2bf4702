"""The query service under load: time to first token, answers a second, and memory that stays flat.

    CMT_DATA_DIR=... python -m benchmarks.query [--minutes 10] [--documents 200]

1. compress articles of a question-answering set into a real LanceDB bank
2. serve it with Ray Serve, and ask by streaming HTTP with 1, 4 and 16 clients: memory, RAG and closed on the same LLM
3. answer the same questions with transformers' own `generate`, and through the engine without HTTP or Ray, one after the other
4. ask at 80% of what 16 clients got for `--minutes`, and watch the replica's memory
Prints every figure beside its bar, writes benchmarks/results/query.json, and ends with 1 when a bar is missed.
"""

from __future__ import annotations

import json
import queue
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from ray import serve
from rich.console import Console
from transformers import AutoModelForCausalLM

from benchmarks.bars import machine
from benchmarks.cpu_kind import cpu_kind
from benchmarks.plots import plot_query
from cmt_core.data.qa import QAExample, read_qa
from cmt_core.llm.model_source import resolve_model
from cmt_core.model import CMT
from cmt_core.text.prompt import INSTRUCTION, question_text
from services.bank.records import Chunk, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.models import fetch_models, load_cmt
from services.query.engine.messages import Ask, Delta, Event, Reply
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.query.ray_serve import app
from services.runtime import ray_session
from services.settings import Settings, load_settings

HERE = Path(__file__).parent
RESULT = HERE / "results" / "query.json"
PICTURE = HERE.parent / "docs" / "query-benchmark.svg"
CLIENTS = (1, 4, 16)
MODES = (("memory", 1), ("memory", 4), ("rag", 1), ("rag", 4), ("closed", 1))
TTFT_SHARE, SPEED_UP, GROWTH, HTTP_S = 0.2, 5.0, 0.05, 0.02
STEP_S = {"AMX": 0.022}  # of a running batch with one row, by the CPU's kind
_INSIDE = 12

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Timed:
    """One streamed answer: seconds to its first text and to its end, tokens of its prompt and of its answer."""

    first_s: float
    total_s: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What a mode did with a number of clients."""

    mode: str
    k: int
    clients: int
    answers: int
    first_token_p50_s: float
    first_token_p95_s: float
    answer_p50_s: float
    answers_per_s: float
    prompt_tokens: float
    completion_tokens: float


def main(
    documents: Annotated[int, typer.Option(min=20, help="Articles in the bank.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Answers of each client, at least 12 in all.")] = 4,
    minutes: Annotated[float, typer.Option(min=0, help="Length of the part at 80% load; 0 leaves it out.")] = 10.0,
    loop: Annotated[int, typer.Option(min=4, help="Questions of the plain loop.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Runs all parts and compares them with the bars."""
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(folder, device)
        examples = _examples(settings, documents, seed)
        fetch_models(settings.model, console)
        cmt = load_cmt(settings)
        passages = _fill(settings, cmt, examples)
        stock = _stock_model(settings, cmt)
        plain = {f"{mode}_k{k}": _plain_loop(cmt, stock, examples[:loop], passages, mode, k) for mode, k in MODES}
        del stock
        inside = in_process(settings, cmt, [example.question for example in examples[:_INSIDE]])
        about = {"device": str(cmt.backbone.device), "dtype": str(cmt.backbone.dtype), "model_id": cmt.model_id}
        del cmt
        with ray_session(settings.ray):
            url = app.start(settings)
            figures = _all_figures(url, [example.question for example in examples], rounds)
            best = next(one for one in figures if (one.mode, one.k, one.clients) == ("memory", 1, 16))
            steady = _steady(url, examples, 0.8 * best.answers_per_s, minutes) if minutes else None
            app.stop()
    bars = [*_bars(figures, plain, steady), *_inside_bars(figures, inside)]
    result = {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "documents": documents,
        **about,
        "figures": [asdict(one) for one in figures],
        "plain_generate_answers_per_s": plain,
        "in_process_s": inside,
        "steady": steady,
        "bars": bars,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot_query(PICTURE, result)
    for bar in bars:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['name']}: {bar['figure']} (bar {bar['bar']})")
    raise typer.Exit(0 if all(bar["met"] for bar in bars) else 1)


def _settings(folder: str, device: str) -> Settings:
    from tests.integration.conftest import find_free_port

    gpus = 1.0 if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()) else 0.0
    return load_settings(
        bank__uri=f"{folder}/bank",
        model__device=device,
        serve__port=find_free_port(),
        serve__gpus=gpus,
        serve__min_score=-1.0,  # every question is to be answered: this measures speed
        serve__max_queued=256,
        serve__max_body_bytes=256 * 1024,
    )


def _examples(settings: Settings, documents: int, seed: int) -> list[QAExample]:
    """One question for each of so many articles, in random order."""
    by_document = {example.doc_id: example for example in read_qa(settings.data_dir / "squad_dev.jsonl.gz")}
    chosen = sorted(by_document.values(), key=lambda example: example.doc_id)
    random.Random(seed).shuffle(chosen)
    return chosen[:documents]


def _fill(settings: Settings, cmt: CMT, examples: Sequence[QAExample]) -> dict[str, str]:
    """Writes the articles' memories into the bank; gives each article's text."""
    console.print(f"compressing {len(examples)} articles")
    layout = BankLayout(cmt.model_id, cmt.d_key, cmt.memory_bytes)
    with BankWriter(settings.bank.uri, layout) as writer:
        for start in range(0, len(examples), 32):
            writer.commit([_write(cmt, one, start + i) for i, one in enumerate(examples[start : start + 32])])
    return {example.doc_id: example.text for example in examples}


def _write(cmt: CMT, example: QAExample, offset: int) -> DocumentWrite:
    windows = cmt.windows(example.title, example.text)
    keys, memories = cmt.document_keys(windows), cmt.compress(windows)
    chunks = tuple(
        Chunk(window.text, key, memory.code, memory.n_tokens)
        for window, key, memory in zip(windows, keys, memories, strict=True)
    )
    now = datetime.now(UTC)
    return DocumentWrite(
        "default", example.doc_id, example.title, None, None, None, None, Position(0, 0, offset, now), chunks
    )


def _stock_model(settings: Settings, cmt: CMT) -> Any:
    """The LLM as transformers loads it: ours has its weights packed and its attention grouped (cmt_core/llm/cpu_kernels.py)."""
    folder = resolve_model(settings.model.llm, settings.model.cache_dir.expanduser(), console.print)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=cmt.backbone.dtype, attn_implementation="sdpa")
    return model.eval().to(cmt.backbone.device)


def _plain_loop(
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


def _inside_bars(figures: Sequence[Figure], inside: dict[str, float]) -> list[dict[str, Any]]:
    alone = {f"{one.mode}_k{one.k}": one.first_token_p50_s for one in figures if one.clients == 1}
    bars = [
        _bar(f"first token over HTTP less in-process, {name}, s", round(seconds - inside[name], 4), HTTP_S, _at_most)
        for name, seconds in alone.items()
    ]
    kind = cpu_kind()
    if kind in STEP_S:
        bars.append(_bar(f"a step of one row ({kind}), s", inside["step"], STEP_S[kind], _at_most))
    return bars


def _all_figures(url: str, questions: Sequence[str], rounds: int) -> list[Figure]:
    figures = []
    for mode, k in MODES:
        _crowd(url, questions[-4:], mode, k, 4)  # warm
        for clients in CLIENTS:
            figures.append(_figure(url, questions, mode, k, clients, max(12, clients * rounds)))
            one = figures[-1]
            console.print(
                f"{mode:7} k={k} {clients:2} clients: first token {one.first_token_p50_s:.3f} s, "
                f"{one.answers_per_s:.2f} answers/s"
            )
    return figures


def _figure(url: str, questions: Sequence[str], mode: str, k: int, clients: int, answers: int) -> Figure:
    asked = [questions[i % len(questions)] for i in range(answers)]
    started = time.perf_counter()
    timed = _crowd(url, asked, mode, k, clients)
    seconds = time.perf_counter() - started
    first = sorted(one.first_s for one in timed)
    return Figure(
        mode,
        k,
        clients,
        len(timed),
        round(statistics.median(first), 4),
        round(first[int(0.95 * (len(first) - 1))], 4),
        round(statistics.median(one.total_s for one in timed), 4),
        round(len(timed) / seconds, 3),
        round(statistics.fmean(one.prompt_tokens for one in timed), 1),
        round(statistics.fmean(one.completion_tokens for one in timed), 1),
    )


def _crowd(url: str, questions: Sequence[str], mode: str, k: int, clients: int) -> list[Timed]:
    limits = httpx.Limits(max_connections=clients)
    with httpx.Client(timeout=300.0, limits=limits) as http, ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda question: _ask(http, url, question, mode, k), questions))


def _ask(http: httpx.Client, url: str, question: str, mode: str, k: int) -> Timed:
    body = {
        "model": "cmt",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "cmt": {"mode": mode, "top_k": k},
    }
    started = time.perf_counter()
    first_s = 0.0
    usage: dict[str, int] = {}
    with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for chunk in _chunks(answer):
            usage = chunk.get("usage") or usage
            if not first_s and (
                (chunk["choices"] and chunk["choices"][0]["delta"].get("content")) or "sources" in chunk
            ):
                first_s = time.perf_counter() - started
    return Timed(first_s, time.perf_counter() - started, usage["prompt_tokens"], usage["completion_tokens"])


def _chunks(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            yield chunk


def _steady(url: str, examples: Sequence[QAExample], rate: float, minutes: float) -> dict[str, Any]:
    """Memory questions at an even rate, whether or not the ones before are answered; the replica's memory all the while."""
    pid = serve.get_deployment_handle("Engine", app.APP_NAME).loaded.remote().result(timeout_s=30).pid
    seconds: list[float] = []
    refused = 0
    samples: list[tuple[float, int]] = []
    lock = threading.Lock()

    def one(http: httpx.Client, question: str) -> None:
        nonlocal refused
        try:
            timed = _ask(http, url, question, "memory", 1)
        except httpx.HTTPStatusError:
            with lock:
                refused += 1
            return
        with lock:
            seconds.append(timed.total_s)

    console.print(f"{rate:.2f} answers/s for {minutes:g} minutes")
    started = time.monotonic()
    with httpx.Client(timeout=300.0, limits=httpx.Limits(max_connections=64)) as http, ThreadPoolExecutor(64) as pool:
        number = 0
        while (elapsed := time.monotonic() - started) < 60 * minutes:
            pool.submit(one, http, examples[number % len(examples)].question)
            number += 1
            if not samples or elapsed - samples[-1][0] >= min(5.0, minutes * 3):
                samples.append((round(elapsed, 1), _rss_bytes(pid)))
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
    samples.append((round(time.monotonic() - started, 1), _rss_bytes(pid)))
    settled = [size for at, size in samples if at >= 0.2 * samples[-1][0]]
    ordered = sorted(seconds)
    return {
        "minutes": minutes,
        "asked_per_s": round(rate, 3),
        "answers": len(seconds),
        "refused": refused,
        "answer_p50_s": round(statistics.median(seconds), 3),
        "answer_p95_s": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "rss_bytes": samples,
        "rss_growth": round(statistics.fmean(settled[-3:]) / statistics.fmean(settled[:3]) - 1, 4),
    }


def _rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} is gone")


def _bars(
    figures: Sequence[Figure], plain: dict[str, float | None], steady: dict[str, Any] | None
) -> list[dict[str, Any]]:
    by_key = {(one.mode, one.k, one.clients): one for one in figures}
    share = by_key["memory", 4, 1].first_token_p50_s / by_key["rag", 4, 1].first_token_p50_s
    bars = [_bar("time to first token, memory / RAG at k=4, 1 client", round(share, 3), TTFT_SHARE, _at_most)]
    served = by_key["memory", 1, 16].answers_per_s
    for name, loop in (("RAG k=4", plain["rag_k4"]), ("RAG k=1", plain["rag_k1"])):
        assert loop is not None
        ratio = round(served / loop, 2)
        bars.append(_bar(f"answers/s, memory at 16 clients / plain generate loop ({name})", ratio, SPEED_UP, _at_least))
    if steady is not None:
        name = f"growth of the replica's memory in {steady['minutes']:g} minutes at 80% load"
        bars.append(_bar(name, steady["rss_growth"], GROWTH, _at_most))
        bars.append(_bar("questions refused at 80% load", steady["refused"], 0, _at_most))
    return bars


def _bar(name: str, figure: float, bar: float, met: Callable[[float, float], bool]) -> dict[str, Any]:
    sign = "<=" if met is _at_most else ">="
    return {"name": name, "figure": figure, "bar": f"{sign} {bar:g}", "met": met(figure, bar)}


def _at_most(figure: float, bar: float) -> bool:
    return figure <= bar


def _at_least(figure: float, bar: float) -> bool:
    return figure >= bar


if __name__ == "__main__":
    typer.run(main)
