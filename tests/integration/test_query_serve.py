"""The query service as users meet it: real Ray, real Serve, real HTTP, the official OpenAI client, the real bank."""

from __future__ import annotations

import asyncio
import json
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

from services.errors import PortInUse, ServiceError, SettingsError
from services.metrics import Metrics
from services.metrics_hub import MetricsPusher
from services.query.engine.messages import UNKNOWN
from services.query.engine.ports import AnsweringModel
from services.query.gateway.keys import hash_of
from services.query.ray_serve.app import start, stop
from services.settings import Settings, load_settings
from services.testing.lexical import LexicalModel
from tests.integration.serve_desk import (
    MODEL,
    NOW,
    Desk,
    ask,
    client,
    quick_model,
    ray_for,
    settings_for,
    slow_model,
    text_of,
)
from tests.waiting import until


def loads_after(seconds: float) -> Callable[[Settings], AnsweringModel]:
    def factory(settings: Settings) -> AnsweringModel:
        time.sleep(seconds)
        return LexicalModel()

    return factory


def broken_model(settings: Settings) -> AnsweringModel:
    raise ServiceError("checkpoint `missing` was not found")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with ray_for(__name__):
        yield


@pytest.fixture(scope="module")
def served(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Desk]]:
    desk = Desk(str(tmp_path_factory.mktemp("bank") / "memories"))
    desk.publish("bridge", "Bridge opens", "Mayor Lund opened the bridge in Aarhus on Monday.")
    desk.publish("ferry", "Ferry stops", "The ferry to Samso was cancelled by a storm.")
    url = start(settings_for(desk.uri), model_factory=quick_model)
    yield url, desk
    stop()


def test_openai_client_gets_an_answer_with_sources_from_the_bank(served: tuple[str, Desk]) -> None:
    reply = ask(served[0], "Who opened the bridge in Aarhus?")
    assert reply.choices[0].message.content == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert reply.choices[0].finish_reason == "stop"
    best = reply.model_extra["sources"][0]
    assert (best["doc_id"], best["url"]) == ("bridge", "https://news.example/bridge")
    assert best["weight"] > 0.5
    assert datetime.fromisoformat(best["published_at"]) == NOW
    assert reply.model_extra["cmt"]["model_id"] == MODEL.model_id


def test_openai_client_streams_words_then_sources_then_usage(served: tuple[str, Desk]) -> None:
    chunks = list(
        ask(served[0], "Who opened the bridge in Aarhus?", stream=True, stream_options={"include_usage": True})
    )
    assert text_of(chunks) == "Mayor Lund opened the bridge in Aarhus on Monday."
    last, usage = chunks[-2:]
    assert last.choices[0].finish_reason == "stop"
    assert last.model_extra["sources"][0]["doc_id"] == "bridge"
    assert last.model_extra["cmt"]["mode"] == "auto"
    assert usage.usage.completion_tokens == 9


def test_asynchronous_client_gets_whole_and_streamed_answers_at_once(served: tuple[str, Desk]) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:

            async def whole() -> str:
                message: Any = {"role": "user", "content": "Who opened the bridge in Aarhus?"}
                reply = await client.chat.completions.create(model="cmt", messages=[message])
                return reply.choices[0].message.content or ""

            async def streamed() -> str:
                prompt = "Why was the ferry to Samso cancelled?"
                stream = await client.completions.create(model="cmt-rag", prompt=prompt, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return list(await asyncio.gather(*(whole() if n % 2 else streamed() for n in range(8))))

    answers = asyncio.run(run())
    assert (
        answers
        == [
            "Ferry stops The ferry to Samso was cancelled by a storm.",  # a passage begins with its title
            "Mayor Lund opened the bridge in Aarhus on Monday.",
        ]
        * 4
    )


def test_follow_up_question_is_understood_from_the_turn_before(served: tuple[str, Desk]) -> None:
    turns: Any = [
        {"role": "user", "content": "Why was the ferry to Samso cancelled?"},
        {"role": "assistant", "content": "a storm"},
        {"role": "user", "content": "And who said so?"},
    ]
    reply = client(served[0]).chat.completions.create(model="cmt", messages=turns)
    assert reply.model_extra is not None
    assert reply.model_extra["sources"][0]["doc_id"] == "ferry"


def test_question_asked_a_second_after_a_commit_is_answered_from_it_and_unknown_before(
    served: tuple[str, Desk],
) -> None:
    url, desk = served
    question = "Which comet was photographed over Skagen?"
    assert ask(url, question).choices[0].message.content == UNKNOWN
    before = datetime.now(UTC) + timedelta(milliseconds=1)
    time.sleep(0.01)
    committed_s = desk.publish("comet", "Comet seen", "The comet Halvorsen was photographed over Skagen.")
    time.sleep(max(0.0, committed_s + 1.0 - time.monotonic()))
    assert "Halvorsen" in ask(url, question).choices[0].message.content
    past = ask(url, question, extra_body={"cmt": {"as_of": before.isoformat()}})
    assert past.choices[0].message.content == UNKNOWN


def test_deleted_article_is_gone_from_the_next_answer_after_its_commit(served: tuple[str, Desk]) -> None:
    url, desk = served
    for number in range(3):
        question = f"Which whale number{number} was seen near Grenaa?"
        desk.publish(f"whale-{number}", "A whale", f"The whale number{number} Moby was seen near Grenaa.")
        assert "Moby" in ask(url, question).choices[0].message.content
        desk.delete(f"whale-{number}")
        answer = ask(url, question)  # the very next one
        assert "Moby" not in answer.choices[0].message.content
        assert f"whale-{number}" not in {source["doc_id"] for source in answer.model_extra["sources"]}
    story = httpx.get(f"{url}/v1/documents/whale-1").json()
    assert (story["state"], len(story["history"])) == ("deleted", 1)
    assert story["history"][0]["deleted_at"] > story["history"][0]["ingested_at"]


def test_document_tells_its_versions_newest_first(served: tuple[str, Desk]) -> None:
    url, desk = served
    desk.publish("vote", "Vote", "Parliament votes on the tunnel.")
    desk.publish("vote", "Vote is over", "Parliament approved the tunnel.")
    story = httpx.get(f"{url}/v1/documents/vote").json()
    assert [one["state"] for one in story["history"]] == ["live", "superseded"]
    assert [one["text"] for one in story["history"]] == [
        "Parliament approved the tunnel.",
        "Parliament votes on the tunnel.",
    ]
    missing = httpx.get(f"{url}/v1/documents/never")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "document_not_found")


def test_filters_reach_the_bank(served: tuple[str, Desk]) -> None:
    url, _ = served
    question = "What of the bridge in Aarhus and the ferry to Samso?"
    for wanted, expected in (({"doc_ids": ["ferry"]}, {"ferry"}), ({"sources": ["It's nobody"]}, set())):
        reply = ask(url, question, extra_body={"cmt": {"filters": wanted}})
        assert {source["doc_id"] for source in reply.model_extra["sources"]} == expected


def test_events_tell_of_an_article_that_arrives(served: tuple[str, Desk]) -> None:
    url, desk = served
    seen: list[str] = []
    with httpx.stream("GET", f"{url}/v1/events", timeout=20.0) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            seen.append(line)
            if line == "event: stats" and seen.count(line) == 1:
                desk.publish("event", "News arrives", "Something arrives.")
            if line.startswith("data: ") and seen[-2].startswith("id: "):
                break
    article = json.loads(seen[-1].removeprefix("data: "))
    assert (article["doc_id"], article["title"]) == ("event", "News arrives")
    last_id = seen[-2].removeprefix("id: ")
    with httpx.stream("GET", f"{url}/v1/events", headers={"Last-Event-ID": last_id[:-9]}, timeout=20.0) as stream:
        assert any("News arrives" in line for line in stream.iter_lines() if line.startswith("data: "))


def test_the_models_are_listed_and_answer_differently(served: tuple[str, Desk]) -> None:
    url, _ = served
    assert [model.id for model in client(url).models.list()] == [
        "cmt",
        "cmt-memory",
        "cmt-rag",
        "cmt-hybrid",
        "cmt-closed",
    ]
    question = "Why was the ferry to Samso cancelled?"
    memory, text, closed = (ask(url, question, model) for model in ("cmt-memory", "cmt-rag", "cmt-closed"))
    assert "storm" in memory.choices[0].message.content
    assert "storm" in text.choices[0].message.content
    assert text.usage.prompt_tokens > memory.usage.prompt_tokens
    assert "storm" not in closed.choices[0].message.content


def test_questions_at_the_same_time_keep_their_answers(served: tuple[str, Desk]) -> None:
    url, _ = served
    questions = ["Who opened the bridge in Aarhus?", "Why was the ferry to Samso cancelled?"] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda q: ask(url, q).choices[0].message.content, questions))
    assert all(("Lund" if "bridge" in q else "storm") in a for q, a in zip(questions, answers, strict=True))


def test_refusals_are_the_openai_clients_own_errors(served: tuple[str, Desk]) -> None:
    url, _ = served
    with pytest.raises(openai.BadRequestError, match="topk"):
        ask(url, "Who?", extra_body={"cmt": {"topk": 3}})
    with pytest.raises(openai.BadRequestError, match="tools"):
        ask(url, "Who?", stream=True, tools=[{"type": "function", "function": {"name": "f"}}])
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
        until(lambda: stats(url)["ingest"]["lag_records"] == 5)
    finally:
        pusher.stop()
    answered = stats(url)["questions_answered"]
    ask(url, "Who opened the bridge?")
    until(lambda: stats(url)["questions_answered"] == answered + 1)
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
    for path in ("page.js", "style.css"):
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
    seen: set[int | None] = set()

    def is_up() -> bool:
        status = get(url, "/healthz")
        seen.add(status)
        return status == 200

    until(is_up, within_s=120.0, seen=lambda: seen)
    assert seen <= {None, 200, 503}  # never 404, though the route is not there at first
    waiting = httpx.get(f"{url}/readyz", timeout=10.0)
    assert waiting.status_code == 503
    assert "loading" in waiting.json()["reason"]
    assert httpx.get(f"{url}/").status_code == 200
    with pytest.raises(openai.InternalServerError, match="loading"):
        ask(url, "Who?")
    starter.join(timeout=60.0)
    missing = httpx.get(f"{url}/readyz")
    assert missing.status_code == 503
    assert f"there is no bank at {tmp_path / 'bank'}" in missing.json()["reason"]
    with pytest.raises(openai.InternalServerError, match="there is no bank at"):
        ask(url, "Who?")
    Desk(settings.bank.uri).close()  # made while the service runs, as a first `cmt ingest` does
    assert httpx.get(f"{url}/readyz").status_code == 200
    empty = ask(url, "Who opened the bridge?")
    assert empty.choices[0].message.content == UNKNOWN
    assert empty.model_extra["sources"] == []
    stop()
    assert get(url, "/healthz") is None


def get(url: str, path: str) -> int | None:
    try:
        return httpx.get(f"{url}{path}", timeout=5.0).status_code
    except httpx.TransportError:
        return None


def test_full_queue_is_429_and_a_client_that_goes_away_frees_its_place(local_ray: None, tmp_path: Path) -> None:
    stop()
    keys = {"desk": hash_of("k3y")}
    uri = str(tmp_path / "bank")
    desk = Desk(uri)
    desk.publish("long", "A long story", f"The story {'goes on and ' * 60} ends.")
    settings = settings_for(
        uri, serve__max_batch=1, serve__max_queued=1, serve__api_keys=keys, model__max_new_tokens=200
    )
    url = start(settings, model_factory=slow_model)
    body = {
        "model": "cmt-memory",
        "messages": [{"role": "user", "content": "How does the story go on?"}],
        "stream": True,
    }
    headers = {"Authorization": "Bearer k3y"}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 401
    with (
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30.0) as first,
        ThreadPoolExecutor(4) as pool,
    ):
        words = first.iter_lines()
        while "story" not in next(words):
            pass

        def post(_: int) -> httpx.Response:
            short = body | {"stream": False, "max_tokens": 2}
            return httpx.post(f"{url}/v1/chat/completions", json=short, headers=headers, timeout=60.0)

        waiting = pool.map(post, range(4))
        until(lambda: 'status="429"} 3.0' in httpx.get(f"{url}/metrics").text)
        assert httpx.get(f"{url}/readyz").status_code == 200  # while one is written, one waits, three were refused
        first.close()  # the client goes away in the middle of its answer
        answers = list(waiting)
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    until(lambda: "cmt_query_cancelled_total 1.0" in httpx.get(f"{url}/metrics").text)
    assert "cmt_query_queued 0.0" in httpx.get(f"{url}/metrics").text
    desk.close()
    stop()


def test_door_is_not_opened_to_strangers_without_keys(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="allow_anonymous") as refused:
        start(settings_for(str(tmp_path), serve__host="0.0.0.0"), model_factory=quick_model)
    assert "\n" not in str(refused.value)


def test_model_that_cannot_be_loaded_is_one_line(local_ray: None, tmp_path: Path) -> None:
    stop()
    settings = settings_for(str(tmp_path / "bank"))
    with pytest.raises(ServiceError, match="checkpoint `missing` was not found") as failed:
        start(settings, model_factory=broken_model)
    assert "\n" not in str(failed.value)
