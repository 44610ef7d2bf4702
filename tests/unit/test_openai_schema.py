"""The HTTP bodies: what is accepted, what is refused, and in which words; over the FastAPI application without Ray."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from services.lexical import LexicalModel
from services.metrics import Metrics, Snapshot
from services.query.api import create_api
from services.query.engine import Answerer, Ask, Failure, Found, Overview, Reply
from services.query.memory_bank import InMemoryBank, StoredWindow
from services.query.service import QueryService
from services.settings import Settings, load_settings

QUESTION = {"model": "cmt", "messages": [{"role": "user", "content": "Who opened the bridge in Aarhus?"}]}


class LocalEngine:
    """The engine in this process."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        model, bank = LexicalModel(), InMemoryBank()
        text = "Mayor Lund opened the bridge in Aarhus on Monday. It cost 12 million."
        known = StoredWindow("a-1", text, model.pack(text), title="Bridge opens", url="https://news.example/a-1")
        bank.add(model.query_keys([text])[0], known)
        self.answerer = Answerer(model, bank)
        self.asked: list[Ask] = []
        self._gate = gate

    async def ask(self, ask: Ask) -> Reply | Failure:
        self.asked.append(ask)
        if self._gate is not None:
            await self._gate.wait()
        return self.answerer.answer([ask])[0]

    async def search(self, ask: Ask) -> Found | Failure:
        return self.answerer.search(ask)

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        return self.answerer.overview(n, namespace)


async def no_snapshots() -> list[Snapshot]:
    return []


def client_of(engine: LocalEngine, settings: Settings) -> httpx.AsyncClient:
    api = create_api(QueryService(settings, engine, Metrics(), no_snapshots))
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://query")


def call(method: str, path: str, engine: LocalEngine | None = None, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        settings = load_settings(**options.pop("flags", {}))
        async with client_of(engine or LocalEngine(), settings) as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def chat(engine: LocalEngine | None = None, **fields: Any) -> httpx.Response:
    return call("POST", "/v1/chat/completions", engine, json=QUESTION | fields)


def test_answer_is_a_chat_completion_with_sources_and_cmt() -> None:
    body = chat().json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    (source,) = body["sources"]
    names = {"doc_id", "chunk_no", "title", "url", "source", "published_at", "score", "weight"}
    assert set(source) == names
    assert source["doc_id"] == "a-1"
    assert source["weight"] == pytest.approx(1.0)
    assert body["cmt"]["bank_version"] == 1
    assert body["cmt"]["model_id"] == "lexical-1"


def test_question_is_the_last_user_message() -> None:
    engine = LocalEngine()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "text", "text": "second"}, {"type": "text", "text": "part"}]},
        {"role": "assistant", "content": None},
    ]
    assert chat(engine, messages=messages).status_code == 200
    assert engine.asked[0].question == "second\npart"


def test_extension_fields_reach_the_engine() -> None:
    engine = LocalEngine()
    options = {"top_k": 2, "as_of": "2026-01-02T03:04:05Z", "namespace": "sport"}
    assert chat(engine, cmt=options, max_completion_tokens=7).status_code == 200
    wanted = Ask(
        "Who opened the bridge in Aarhus?",
        top_k=2,
        as_of=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        namespace="sport",
        max_new_tokens=7,
    )
    assert engine.asked == [wanted]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"cmt": {"topk": 3}}, "cmt.topk"),
        ({"cmt": {"top_k": 0}}, "cmt.top_k"),
        ({"cmt": {"as_of": "2026-01-02T03:04:05"}}, "cmt.as_of"),
        ({"cmt": {"namespace": "  "}}, "cmt.namespace"),
        ({"temprature": 0}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 4001}]}, "messages"),
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openai_shape(fields: dict[str, Any], param: str) -> None:
    engine = LocalEngine()
    answer = chat(engine, **fields)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert engine.asked == []


def test_body_that_is_not_json_is_a_400() -> None:
    answer = call("POST", "/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_unknown_model_is_a_404_that_names_the_known_ones() -> None:
    answer = chat(model="gpt-5")
    assert answer.status_code == 404
    assert "cmt-rag" in answer.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"n": 1}, {"tools": []}, {"seed": 4, "user": "u"}, {"presence_penalty": 0}])
def test_default_values_of_unsupported_fields_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields).status_code == 200


def test_temperature_is_accepted_and_noted_as_greedy() -> None:
    assert "greedily" in chat(temperature=0.7).json()["cmt"]["notes"][0]
    assert chat(temperature=0).json()["cmt"]["notes"] == []


def test_answer_ends_before_the_first_stop_string() -> None:
    choice = chat(stop=["Monday", " the bridge"]).json()["choices"][0]
    assert choice["message"]["content"] == "Mayor Lund opened"
    assert choice["finish_reason"] == "stop"


def test_token_limit_ends_an_answer_with_length() -> None:
    choice = chat(max_tokens=3).json()["choices"][0]
    assert choice["message"]["content"] == "Mayor Lund opened"
    assert choice["finish_reason"] == "length"


def test_api_key_guards_v1_and_nothing_else() -> None:
    flags = {"serve__api_key": "s3cret"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        refused = call("GET", "/v1/models", headers=headers, flags=dict(flags))
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    allowed = call("GET", "/v1/models", headers={"Authorization": "Bearer s3cret"}, flags=dict(flags))
    assert [model["id"] for model in allowed.json()["data"]] == ["cmt", "cmt-rag", "cmt-closed"]
    assert call("GET", "/healthz", flags=dict(flags)).status_code == 200


def test_full_queue_is_a_429_with_retry_after() -> None:
    async def run() -> tuple[httpx.Response, list[httpx.Response]]:
        gate = asyncio.Event()
        settings = load_settings(serve__max_batch=1, serve__max_queued=1)
        async with client_of(LocalEngine(gate), settings) as client:
            inside = [asyncio.create_task(client.post("/v1/chat/completions", json=QUESTION)) for _ in range(2)]
            await asyncio.sleep(0.1)
            refused = await client.post("/v1/chat/completions", json=QUESTION)
            gate.set()
            return refused, list(await asyncio.gather(*inside))

    refused, inside = asyncio.run(run())
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert [answer.status_code for answer in inside] == [200, 200]


def test_search_gives_hits_with_text_and_no_memory() -> None:
    body = call("POST", "/v1/search", json={"query": "bridge Aarhus", "top_k": 5}).json()
    (hit,) = body["data"]
    assert hit["text"].startswith("Mayor Lund")
    assert hit["score"] > 0
    assert "memory" not in hit


def test_metrics_page_counts_answers_by_model_and_status() -> None:
    async def run() -> str:
        async with client_of(LocalEngine(), load_settings()) as client:
            await client.post("/v1/chat/completions", json=QUESTION)
            await client.post("/v1/chat/completions", json=QUESTION | {"model": "nonsense"})
            return (await client.get("/metrics")).text

    page = asyncio.run(run())
    assert 'cmt_query_requests_total{model="cmt",status="200"} 1.0' in page
    assert 'cmt_query_requests_total{model="unknown",status="404"} 1.0' in page


def test_bug_is_a_500_in_openai_shape_that_is_counted_and_tells_no_secrets() -> None:
    class Broken(LocalEngine):
        async def ask(self, ask: Ask) -> Reply | Failure:
            raise KeyError("secret detail")

    async def run() -> tuple[httpx.Response, str]:
        api = create_api(QueryService(load_settings(), Broken(), Metrics(), no_snapshots))
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://query") as client:
            return await client.post("/v1/chat/completions", json=QUESTION), (await client.get("/metrics")).text

    answer, page = asyncio.run(run())
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert 'cmt_query_requests_total{model="cmt",status="500"} 1.0' in page


def test_question_of_a_client_that_goes_away_frees_its_place() -> None:
    async def run() -> tuple[int, str]:
        gate = asyncio.Event()
        settings = load_settings(serve__max_batch=1, serve__max_queued=1)
        async with client_of(LocalEngine(gate), settings) as client:
            gone = [asyncio.create_task(client.post("/v1/chat/completions", json=QUESTION)) for _ in range(2)]
            await asyncio.sleep(0.1)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            gate.set()
            answer = await client.post("/v1/chat/completions", json=QUESTION)
            return answer.status_code, (await client.get("/metrics")).text

    status, page = asyncio.run(run())
    assert status == 200
    assert 'cmt_query_requests_total{model="cmt",status="499"} 2.0' in page
    assert "cmt_query_queued 0.0" in page


def test_every_answer_forbids_foreign_scripts() -> None:
    policy = call("GET", "/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
