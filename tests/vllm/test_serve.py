"""The whole service on vLLM: `cmt serve` in its environment, replicas in vLLM's, the official OpenAI client, the real bank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cmt_core.model import CMT
from cmt_core.text.spelling import SourceSpans
from services.bank.records import DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.commands.encoding import chunks_of
from tests.integration.conftest import find_free_port
from tests.vllm.parts import NEWS, QUESTIONS
from tests.waiting import until

ANSWERS = ("Lund", "9", "42", "Varde", "3 per cent")
PATIENCE_S = 1500.0


@dataclass
class Service:
    """A running `cmt serve`."""

    url: str
    bank: str

    def ask(self, question: str, model: str = "cmt-memory", **more: Any) -> Any:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300.0)
        message: Any = {"role": "user", "content": question}
        reply = client.chat.completions.create(model=model, messages=[message], **more)
        reply.asked_by = client  # a stream ends with its client
        return reply

    def text(self, question: str, model: str = "cmt-memory", **more: Any) -> str:
        return self.ask(question, model, **more).choices[0].message.content

    def processes(self, name: str) -> list[int]:
        """Of this service: those that have its bank in their environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    name.encode() in (folder / "cmdline").read_bytes()
                    and self.bank.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


def write_bank(uri: str) -> None:
    cmt = CMT.load(device="cpu")
    writer = BankWriter(uri, BankLayout(cmt.model_id, cmt.d_key, cmt.memory_bytes))
    for number, (title, text) in enumerate(NEWS):
        chunks = tuple(chunks_of(cmt, cmt.windows(title, text)))
        now = datetime.now(UTC)
        writer.commit(
            [
                DocumentWrite(
                    namespace="default",
                    doc_id=f"news-{number}",
                    title=title,
                    url=f"https://news.example/{number}",
                    source="The Example",
                    published_at=now,
                    expires_at=None,
                    position=Position(0, 0, number + 1, now),
                    chunks=chunks,
                )
            ]
        )
    writer.close()


@pytest.fixture(scope="module")
def service(below: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    bank, port = str(folder / "bank"), find_free_port()
    write_bank(bank)
    engine = {"enforce_eager": True, "dtype": "float32", "block_size": 32, "kv_cache_memory_bytes": 2**28}
    environment = os.environ | {
        "CMT_BANK__URI": bank,
        "CMT_SERVE__ENGINE": "vllm",
        "CMT_SERVE__VLLM": json.dumps(engine),
        "CMT_SERVE__VLLM_PYTHON": sys.executable,
        "CMT_SERVE__REPLICAS": "2",
        "CMT_SERVE__MAX_BATCH": "4",
        "CMT_SERVE__MAX_QUEUED": "4",
        "OMP_NUM_THREADS": "1",
    }
    log = (folder / "serve.log").open("w+")
    command = [str(below.parent / "cmt"), "serve", "--port", str(port)]
    running = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True)

    def is_up() -> bool:
        assert running.poll() is None, (folder / "serve.log").read_text()
        return "serving http" in (folder / "serve.log").read_text()

    try:
        until(is_up, PATIENCE_S)
        yield Service(f"http://127.0.0.1:{port}", bank)
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)
        log.close()


def test_answers_are_spelled_from_their_sources(service: Service) -> None:
    """Drawn ones too, which would go anywhere; a rare one is left by all likely tokens, and goes its own way."""
    spans = SourceSpans([f"{title}\n{text}" for title, text in NEWS])
    replies = [service.ask(question, temperature=1.5, seed=seed) for question in QUESTIONS for seed in range(3)]
    ended = [one.choices[0].message.content for one in replies if one.choices[0].finish_reason == "stop"]
    assert len(set(ended)) > len(QUESTIONS)
    assert sum(map(spans.has, ended)) >= 0.8 * len(ended)


def test_answers_come_from_memories_with_their_sources(service: Service) -> None:
    for question, answer in zip(QUESTIONS, ANSWERS, strict=False):
        reply = service.ask(question)
        assert answer in reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"
        info = reply.model_extra["cmt"]
        assert (info["mode"], info["weighted_by"], info["read"]) == ("memory", "prior", "memory")
        weights = [source["weight"] for source in reply.model_extra["sources"]]
        assert sum(weights) == pytest.approx(1.0)


@pytest.mark.parametrize("model", ["cmt", "cmt-memory", "cmt-rag", "cmt-hybrid", "cmt-closed"])
def test_every_mode_streams_the_words_of_its_whole_answer(service: Service, model: str) -> None:
    chunks = list(service.ask(QUESTIONS[0], model, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == service.text(QUESTIONS[0], model)
    assert text
    assert chunks[-1].usage.completion_tokens > 0
    if model != "cmt-closed":
        assert "Lund" in text


def test_stop_strings_token_limits_and_seeds(service: Service) -> None:
    whole = service.text(QUESTIONS[0])
    assert "Lund" in whole
    assert "Lund" not in service.text(QUESTIONS[0], stop=["Lund"])
    short = service.ask(QUESTIONS[0], "cmt-closed", max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    drawn = [
        service.text("Tell me a story.", "cmt-closed", temperature=1.5, seed=seed, max_tokens=16) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_this_engine_can_not_do_is_a_400_that_says_so(service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match="memory_weight must be 1 with"):
        service.ask(QUESTIONS[0], extra_body={"cmt": {"memory_weight": 1.5}})


def test_deadline_is_a_504_and_a_client_that_leaves_frees_its_place(service: Service) -> None:
    with pytest.raises(openai.APIStatusError) as late:
        service.ask(
            "Tell me a very long story.", "cmt-closed", max_tokens=1000, extra_body={"cmt": {"deadline_s": 0.05}}
        )
    assert late.value.status_code == 504
    for _ in range(12):  # more than there are places
        for _ in service.ask("Tell me a very long story.", "cmt-closed", max_tokens=1000, stream=True):
            break
    assert "Lund" in service.text(QUESTIONS[0])


def test_more_questions_than_places_are_answered_or_refused_with_429(service: Service) -> None:
    def ask(number: int) -> str:
        try:
            return service.text(QUESTIONS[number % 5])
        except openai.RateLimitError as error:
            return "" if "retry-after" in error.response.headers else "429 without Retry-After"

    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(ask, range(64)))
    assert all(text == "" or ANSWERS[number % 5] in text for number, text in enumerate(texts))
    assert sum(bool(text) for text in texts) >= 8


def test_page_probes_and_metrics_are_the_same(service: Service) -> None:
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    assert "text/html" in httpx.get(f"{service.url}/").headers["content-type"]
    until(lambda: "cmt_query_first_token_seconds" in httpx.get(f"{service.url}/metrics").text, 60.0)


@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "VLLM::Worker"])
def test_killed_core_or_worker_costs_answers_under_way_and_none_is_wrong(service: Service, victim: str) -> None:
    """Questions that had no word yet go to the other replica, and Serve starts another one."""
    right, wrong, refused, ended = [0], [], [], threading.Event()

    def go_on(number: int) -> None:
        while not ended.is_set():
            number = (number + 1) % 5
            try:
                text = service.text(QUESTIONS[number])
            except openai.APIError as error:
                refused.append(repr(error))
                continue
            if ANSWERS[number] in text:
                right[0] += 1
            else:
                wrong.append(text)

    before = set(service.processes("VLLM::EngineCore"))
    clients = [threading.Thread(target=go_on, args=(number,), daemon=True) for number in range(4)]
    for one in clients:
        one.start()
    until(lambda: right[0] >= 4, 300.0)
    os.kill(service.processes(victim)[0], signal.SIGKILL)
    try:
        answered = right[0]
        until(lambda: right[0] >= answered + 12, 600.0)  # by the other one
        until(lambda: len(set(service.processes("VLLM::EngineCore")) - before) >= 1, PATIENCE_S)
    finally:
        ended.set()
        for one in clients:
            one.join(120)
    assert wrong == []
    assert len(refused) <= 8, refused
    # what the lost replica had started is gone with it
    until(lambda: len(service.processes("VLLM::EngineCore")) == 2, PATIENCE_S)
    time.sleep(1.0)
