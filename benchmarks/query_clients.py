"""Clients of a running query service: what streaming HTTP gives to 1, 4 and 16 of them, and to an even load for minutes."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from ray import serve
from rich.console import Console

from services.query.ray_serve import app

__all__ = ["CLIENTS", "MODES", "Figure", "console", "figures_of", "steady_load"]

CLIENTS = (1, 4, 16)
MODES = (("memory", 1), ("memory", 4), ("rag", 1), ("rag", 4), ("closed", 1))
"""What is read, and from how many articles."""

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


def figures_of(url: str, questions: Sequence[str], rounds: int) -> list[Figure]:
    """Every mode with every number of clients, each of which asks `rounds` questions, at least 12 in all."""
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


def steady_load(url: str, questions: Sequence[str], rate: float, minutes: float) -> dict[str, Any]:
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
            pool.submit(one, http, questions[number % len(questions)])
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
