"""`cmt demo`: questions before the news, the news through Kafka, the same questions after it.

1. fetch the models, start the broker, Ray, the query service and the ingest actors, all on an empty bank
2. ask every sample question of the LLM alone: an empty memory would only say that it does not know
3. play the sample feeds through Kafka at a visible pace, and wait until the last record is in the bank
4. ask every question again, print ten rows of the table (`--all`: every one) and the two scores
5. stay up until Ctrl-C, or end with the verdict as exit code
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cmt_core.evaluation.metrics import contains_answer
from cmt_core.text.prompt import SHORT_ANSWERS
from services.commands.client import ask_service
from services.commands.demo_report import DemoReport, QuestionResult, print_report, write_report
from services.feed.fetch import read_all
from services.feed.play import play
from services.ingest.pipeline import IngestHandle, start_ingest
from services.interrupts import interruptible, temporary_folder
from services.model_check import check_checkpoint
from services.models import fetch_models
from services.query.ray_serve import app
from services.query.ray_serve.proxy import proxy_environment
from services.runtime import ray_session
from services.sample_news import SAMPLE_NEWS, read_questions, sample_locations
from services.settings import Settings
from services.stream.broker import open_broker
from services.stream.producer import DocumentProducer
from services.stream.topics import ensure_topics
from services.terminal import Terminal

__all__ = ["run_demo"]

_CONCURRENCY = 16  # questions under way at once; the service batches them
_ANSWER_TOKENS = 32  # a chat LLM that knows nothing of the matter would go on for pages
_CATCH_UP_S = 180.0
_STOP_S = 2.5

console = Terminal()


def run_demo(
    settings: Settings,
    *,
    news: Path | None,
    rate_per_s: float,
    once: bool,
    report: Path | None,
    every_row: bool = False,
) -> int:
    """Runs the demo; the exit code is 0 when it passed (and, without `once`, when Ctrl-C ended it afterwards)."""
    folder = news or SAMPLE_NEWS
    questions = read_questions(folder)
    app.refuse_taken_port(settings.serve.host, settings.serve.port)  # before anything slow
    with ExitStack() as stack:
        settings = stack.enter_context(_own_bank_and_topic(_with_starters(settings, questions)))
        url, ingest, producer = _start(stack, settings)
        outcome = _before_and_after(settings, url, ingest, producer, folder, questions, rate_per_s)
        print_report(outcome, console, every_row)
        if report is not None:
            write_report(report, outcome)
        if not once:
            _stay(url, ingest, questions[0]["question"])
    return 0 if outcome.passed else 1


def _start(stack: ExitStack, settings: Settings) -> tuple[str, IngestHandle, DocumentProducer]:
    with _step("models"):
        fetch_models(settings.model, console)
        check_checkpoint(settings.model)
    with _step("Kafka" if settings.kafka.bootstrap_servers else "embedded Kafka-compatible broker"):
        bootstrap = stack.enter_context(open_broker(settings.kafka))
        ensure_topics(settings.kafka, bootstrap)
        producer = stack.enter_context(DocumentProducer(settings.kafka, bootstrap))
    proxy_environment(os.environ)
    with _step("Ray"):
        stack.enter_context(ray_session(settings.ray))
    with _step("query service, ingest actors and bank writer"), _threads(1) as pool:
        starting = pool.submit(start_ingest, settings, bootstrap)  # both load the LLM, which leaves a core idle
        url = app.start(settings)
        stack.callback(app.remove)
        ingest = starting.result()
        stack.callback(ingest.kill)  # the bank is the demo's own, and goes with it
    return url, ingest, producer


def _before_and_after(
    settings: Settings,
    url: str,
    ingest: IngestHandle,
    producer: DocumentProducer,
    folder: Path,
    questions: list[dict[str, Any]],
    rate_per_s: float,
) -> DemoReport:
    seconds: dict[str, float] = {}
    with _timed(seconds, "ask_before"):
        before = _ask_all(url, settings, questions, "cmt-closed", "asking the LLM alone")
    with _timed(seconds, "news"):
        _play(settings, ingest, producer, folder, rate_per_s)
    with _timed(seconds, "ask_after"):
        after = _ask_all(url, settings, questions, "cmt", "asking after the news")
    return DemoReport([_row(*asked) for asked in zip(questions, before, after, strict=True)], seconds)


def _play(settings: Settings, ingest: IngestHandle, producer: DocumentProducer, folder: Path, rate: float) -> None:
    locations = sample_locations(folder)
    items = list(read_all(locations, settings.feed))
    with _bar() as bar:
        task = bar.add_task("news through Kafka", total=len(items))
        play(iter(items), producer, rate, on_sent=lambda sent: bar.update(task, completed=sent))
    with _step("last records into the bank"):
        ingest.wait_until_caught_up(_CATCH_UP_S)
        time.sleep(settings.serve.read_staleness_s)


def _ask_all(
    url: str, settings: Settings, questions: Sequence[dict[str, Any]], model: str, label: str
) -> list[dict[str, Any]]:
    with _bar() as bar, _threads(_CONCURRENCY) as pool:
        task = bar.add_task(label, total=len(questions))

        def ask(question: dict[str, Any]) -> dict[str, Any]:
            reply = ask_service(
                url, settings, question["question"], model, instructions=SHORT_ANSWERS, max_tokens=_ANSWER_TOKENS
            )
            bar.advance(task)
            return reply

        return list(pool.map(ask, questions))


def _row(question: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> QuestionResult:
    answers = [_content(reply) for reply in (before, after)]
    sources = after.get("sources") or [{}]
    best = max(sources, key=lambda source: source.get("weight") or 0.0)
    return QuestionResult(
        question["question"],
        question["answers"][0],
        answers[0],
        answers[1],
        best.get("title") or best.get("doc_id") or "",
        contains_answer(answers[0], question["answers"]),
        contains_answer(answers[1], question["answers"]),
        str(after["cmt"]["read"]),
    )


def _content(reply: dict[str, Any]) -> str:
    return " ".join(str(reply["choices"][0]["message"]["content"]).split())


def _stay(url: str, ingest: IngestHandle, question: str) -> None:
    body = json.dumps({"model": "cmt", "messages": [{"role": "user", "content": question}]}).replace("'", "")
    console.print(f"\nThe page: {url}/")
    console.print(
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        highlight=False,
        soft_wrap=True,
    )
    console.print("Ctrl-C ends the demo.")
    with interruptible(_STOP_S) as wait:
        while not wait(1.0):
            ingest.raise_if_failed()
    console.print("stopping")


def _with_starters(settings: Settings, questions: Sequence[dict[str, Any]]) -> Settings:
    """The page offers the questions about this news that say so, unless the settings have some of their own."""
    marked = [question["question"] for question in questions if question.get("starter")]
    if settings.serve.starters or not marked:
        return settings
    return settings.model_copy(update={"serve": settings.serve.model_copy(update={"starters": marked})})


@contextmanager
def _own_bank_and_topic(settings: Settings) -> Iterator[Settings]:
    """An empty bank and a topic of this run alone: "before the news" must not know yesterday's demo."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    kafka = settings.kafka.model_copy(update={"topic": f"cmt-demo-{stamp}", "group_id": f"cmt-demo-{stamp}"})
    with temporary_folder("cmt-demo-") as folder:
        bank = settings.bank.model_copy(update={"uri": str(Path(folder) / "bank")})
        yield settings.model_copy(update={"kafka": kafka, "bank": bank})


@contextmanager
def _step(label: str) -> Iterator[None]:
    started = time.monotonic()
    console.print(f"  {label} ...", end="")
    yield
    console.print(f" {time.monotonic() - started:.1f} s")


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that is waited for at the end of the block, unless that is interrupted."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)


def _bar() -> Progress:
    return Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
