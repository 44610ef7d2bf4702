"""The query service as users meet it: real Ray, real Serve, real HTTP, the official OpenAI client, the real bank."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray

from services.bank.schema import BankLayout, Chunk, DocumentWrite, Position
from services.bank.writer import BankWriter
from services.errors import PortInUse, ServiceError
from services.lexical import LexicalAnswer, LexicalModel
from services.metrics import Metrics
from services.metrics_hub import MetricsPusher
from services.query.app import start, stop
from services.query.ports import AnsweringModel
from services.settings import Settings, load_settings

NOW = datetime.now(UTC)
MODEL = LexicalModel()
LAYOUT = BankLayout(MODEL.model_id, MODEL.d_key, MODEL.memory_bytes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Desk:
    """Writes articles into the real bank."""

    def __init__(self, uri: str) -> None:
        self._writer = BankWriter(uri, LAYOUT)
        self._offset = 0

    def publish(self, doc_id: str, title: str, text: str) -> None:
        self._offset += 1
        chunk = Chunk(text, MODEL.query_keys([text])[0], MODEL.pack(text), len(text.split()))
        write = DocumentWrite(
            namespace="default",
            doc_id=doc_id,
            title=title,
            url=f"https://news.example/{doc_id}",
            source="The Example",
            published_at=NOW,
            expires_at=None,
            position=Position(0, 0, self._offset, NOW),
            chunks=(chunk,),
        )
        self._writer.commit([write])


def quick_model(settings: Settings) -> AnsweringModel:
    return LexicalModel()


def slow_model(settings: Settings) -> AnsweringModel:
    """A model whose every batch takes 3 s."""

    class Slow(LexicalModel):
        def answer_closed(self, questions: Any, *, max_new_tokens: int) -> list[LexicalAnswer]:
            time.sleep(3.0)
            return super().answer_closed(questions, max_new_tokens=max_new_tokens)

    return Slow()


def loads_after(seconds: float) -> Callable[[Settings], AnsweringModel]:
    def factory(settings: Settings) -> AnsweringModel:
        time.sleep(seconds)
        return LexicalModel()

    return factory


def broken_model(settings: Settings) -> AnsweringModel:
    raise ServiceError("checkpoint `missing` was not found")


def settings_for(uri: str, **flags: Any) -> Settings:
    return load_settings(bank__uri=uri, serve__port=free_port(), **flags)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    # this module is not importable in Ray's workers, so its functions travel by value
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    stop()
    ray.shutdown()


@pytest.fixture(scope="module")
def served(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Desk]]:
    uri = str(tmp_path_factory.mktemp("bank") / "memories")
    desk = Desk(uri)
    desk.publish("bridge", "Bridge opens", "Mayor Lund opened the bridge in Aarhus on Monday.")
    desk.publish("ferry", "Ferry stops", "The ferry to Samso was cancelled by a storm.")
    url = start(settings_for(uri), model_factory=quick_model)
    yield url, desk
    stop()


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30.0)


def ask(url: str, question: str, model: str = "cmt", **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return client(url).chat.completions.create(model=model, messages=messages, **options)


def eventually(claim: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)


def test_openai_client_gets_an_answer_with_sources_from_the_bank(served: tuple[str, Desk]) -> None:
    reply = ask(served[0], "Who opened the bridge in Aarhus?")
    assert reply.choices[0].message.content == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert reply.choices[0].finish_reason == "stop"
    best = reply.model_extra["sources"][0]
    assert (best["doc_id"], best["url"]) == ("bridge", "https://news.example/bridge")
    assert best["weight"] > 0.5
    assert datetime.fromisoformat(best["published_at"]) == NOW
    assert reply.model_extra["cmt"]["model_id"] == MODEL.model_id


def test_article_is_answerable_seconds_after_its_commit_and_unknown_before(served: tuple[str, Desk]) -> None:
    url, desk = served
    question = "Which comet was photographed over Skagen?"
    assert "Skagen" not in ask(url, question).choices[0].message.content
    before = datetime.now(UTC) + timedelta(milliseconds=1)
    time.sleep(0.01)
    desk.publish("comet", "Comet seen", "The comet Halvorsen was photographed over Skagen.")
    eventually(lambda: "Halvorsen" in ask(url, question).choices[0].message.content, within_s=5.0)
    past = ask(url, question, extra_body={"cmt": {"as_of": before.isoformat()}})
    assert "Halvorsen" not in past.choices[0].message.content


def test_the_three_models_are_listed_and_answer_differently(served: tuple[str, Desk]) -> None:
    url, _ = served
    assert [model.id for model in client(url).models.list()] == ["cmt", "cmt-rag", "cmt-closed"]
    question = "Why was the ferry to Samso cancelled?"
    memory, text, closed = (ask(url, question, model) for model in ("cmt", "cmt-rag", "cmt-closed"))
    assert "storm" in memory.choices[0].message.content
    assert "storm" in text.choices[0].message.content
    assert text.usage.prompt_tokens > memory.usage.prompt_tokens
    assert "storm" not in closed.choices[0].message.content


def test_questions_at_the_same_time_share_batches_and_keep_their_answers(served: tuple[str, Desk]) -> None:
    url, _ = served
    questions = ["Who opened the bridge in Aarhus?", "Why was the ferry to Samso cancelled?"] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda q: ask(url, q).choices[0].message.content, questions))
    assert all(("Lund" if "bridge" in q else "storm") in a for q, a in zip(questions, answers, strict=True))
    eventually(lambda: batch_histogram(url)[0] < batch_histogram(url)[1])


def batch_histogram(url: str) -> tuple[float, float]:
    """Batches and questions so far, from /metrics."""
    lines = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")
    )
    name = "cmt_query_batch_questions"
    return float(lines.get(f"{name}_count", "0")), float(lines.get(f"{name}_sum", "0"))


def test_refusals_are_the_openai_clients_own_errors(served: tuple[str, Desk]) -> None:
    url, _ = served
    with pytest.raises(openai.BadRequestError, match="topk"):
        ask(url, "Who?", extra_body={"cmt": {"topk": 3}})
    with pytest.raises(openai.BadRequestError, match="streaming"):
        ask(url, "Who?", stream=True)
    with pytest.raises(openai.NotFoundError, match="cmt-rag"):
        ask(url, "Who?", model="other")


def test_stats_show_bank_questions_and_ingest_of_another_process(served: tuple[str, Desk]) -> None:
    url, _ = served
    metrics = Metrics()
    metrics.count("cmt_ingest_records_total", 3, outcome="stored")
    metrics.count("cmt_ingest_dead_letters_total", 2, reason="schema")
    metrics.gauge("cmt_ingest_lag_records", 5, partition="0")
    pusher = MetricsPusher("test-ingest", metrics, interval_s=0.2)
    try:
        eventually(lambda: stats(url)["ingest"]["lag_records"] == 5)
    finally:
        pusher.stop()
    answered = stats(url)["questions_answered"]
    ask(url, "Who opened the bridge?")
    eventually(lambda: stats(url)["questions_answered"] == answered + 1)
    seen = stats(url)
    assert seen["documents"] >= 2
    assert seen["rows"] >= seen["documents"]
    assert {"bridge", "ferry"} <= {article["doc_id"] for article in seen["latest"]}
    assert seen["ingest"]["dead_letters"] == 2
    assert 'cmt_ingest_dead_letters_total{reason="schema"} 2.0' in httpx.get(f"{url}/metrics").text


def stats(url: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/v1/stats")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_search_page_and_probes_answer(served: tuple[str, Desk]) -> None:
    url, _ = served
    found = httpx.post(f"{url}/v1/search", json={"query": "ferry Samso", "top_k": 1}).json()
    assert [hit["doc_id"] for hit in found["data"]] == ["ferry"]
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    page = httpx.get(f"{url}/")
    assert "text/html" in page.headers["content-type"]
    for path in ("app.js", "style.css"):
        assert f"static/{path}" in page.text
        assert httpx.get(f"{url}/static/{path}").status_code == 200


def test_taken_port_is_one_line(served: tuple[str, Desk], tmp_path: Path) -> None:
    port = int(served[0].rsplit(":", 1)[1])
    with pytest.raises(PortInUse, match=str(port)) as refused:
        start(load_settings(serve__port=port, bank__uri=str(tmp_path)), model_factory=quick_model)
    assert "\n" not in str(refused.value)
    assert httpx.get(f"{served[0]}/healthz").status_code == 200


# The tests below deploy services of their own, so they come after those that share one.


def test_page_is_up_while_the_llm_loads_and_readiness_says_so(local_ray: None, tmp_path: Path) -> None:
    stop()
    settings = settings_for(str(tmp_path / "bank"))
    url = f"http://127.0.0.1:{settings.serve.port}"
    starter = threading.Thread(target=lambda: start(settings, model_factory=loads_after(12.0)), daemon=True)
    starter.start()
    eventually(lambda: get(url, "/healthz") == 200, within_s=60.0)
    waiting = httpx.get(f"{url}/readyz", timeout=10.0)
    assert waiting.status_code == 503
    assert "loading" in waiting.json()["reason"]
    assert httpx.get(f"{url}/").status_code == 200
    with pytest.raises(openai.InternalServerError, match="loading"):
        ask(url, "Who?")
    starter.join(timeout=60.0)
    assert httpx.get(f"{url}/readyz").status_code == 200
    empty = ask(url, "Who opened the bridge?")
    assert empty.model_extra["sources"] == []
    assert "nothing" in empty.model_extra["cmt"]["notes"][0]
    stop()
    assert get(url, "/healthz") is None


def get(url: str, path: str) -> int | None:
    try:
        return httpx.get(f"{url}{path}", timeout=5.0).status_code
    except httpx.TransportError:
        return None


def test_full_queue_is_429_with_retry_after_and_the_health_check_stays_quick(local_ray: None, tmp_path: Path) -> None:
    stop()
    settings = settings_for(str(tmp_path / "bank"), serve__max_batch=1, serve__max_queued=1, serve__api_key="k3y")
    url = start(settings, model_factory=slow_model)
    body = {"model": "cmt-closed", "messages": [{"role": "user", "content": "Who?"}]}
    headers = {"Authorization": "Bearer k3y"}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 401

    def post(_: int) -> httpx.Response:
        return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30.0)

    with ThreadPoolExecutor(6) as pool:
        waiting = pool.map(post, range(6))
        time.sleep(0.5)
        started = time.perf_counter()
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert time.perf_counter() - started < 1.5  # half of what the running batch takes
        answers = list(waiting)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    stop()


def test_model_that_cannot_be_loaded_is_one_line(local_ray: None, tmp_path: Path) -> None:
    stop()
    settings = settings_for(str(tmp_path / "bank"))
    with pytest.raises(ServiceError, match="checkpoint `missing` was not found") as failed:
        start(settings, model_factory=broken_model)
    assert "\n" not in str(failed.value)
