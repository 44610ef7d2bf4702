"""The HTTP bodies: what is accepted, what is refused, and in which words; over the FastAPI application without Ray."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from cmt_core.generation.query import Sampling
from services.bank.document_filter import DocumentFilter
from services.metrics import Metrics
from services.query.engine.messages import UNKNOWN, Ask
from services.query.engine.scheduler import SchedulerOptions
from services.query.gateway.api import create_api
from services.query.gateway.keys import hash_of
from services.query.gateway.service import QueryService
from services.settings import load_settings
from services.testing.memory_bank import window
from tests.serving import BRIDGE, STREAMED, LocalEngine, SentTombstones, client_of, no_snapshots, publish

QUESTION = {"model": "cmt", "messages": [{"role": "user", "content": "Who opened the bridge in Aarhus?"}]}
PROMPT = {"model": "cmt", "prompt": "Who opened the bridge in Aarhus?"}


@pytest.fixture(autouse=True, params=[False, True], ids=["running-batch", "streams"])
def either_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every claim holds for our own running batch and for an engine that batches by itself."""
    token = STREAMED.set(request.param)
    yield
    STREAMED.reset(token)


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
    names = {"doc_id", "chunk_no", "title", "url", "source", "published_at", "ingested_at", "score", "weight"}
    assert set(source) == names | {"place"}
    assert source["place"] == {"start": 0, "end": 48}  # of the text, without its full stop
    assert (body["cmt"]["read"], body["cmt"]["grounded"]) == ("memory", True)
    assert body["cmt"]["known"] is True
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


@pytest.mark.parametrize("question", ["", " \u00a0", "\u200b\u200b", "\ufeff\u00ad", "\x00\x1b"])
def test_question_of_which_nothing_can_be_seen_is_empty(question: str) -> None:
    reply = chat(LocalEngine(), messages=[{"role": "user", "content": question}])
    assert reply.status_code == 400
    assert "is empty" in reply.json()["error"]["message"]


def test_extension_fields_reach_the_engine() -> None:
    engine = LocalEngine()
    options = {
        "top_k": 2,
        "as_of": "2026-01-02T03:04:05Z",
        "namespace": "sport",
        "filters": {
            "sources": ["The Example"],
            "published_after": "2026-01-01T00:00:00Z",
            "metadata": {"section": "local", "tags": ["market", 7], "pinned": True},
        },
        "mode": "hybrid",
        "memory_weight": 1.5,
        "min_score": 0.1,
        "deadline_s": 9,
        "citations": True,
    }
    chosen = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": "x", "max_completion_tokens": 7}
    assert chat(engine, cmt=options, **chosen).status_code == 200
    wanted = Ask(
        "Who opened the bridge in Aarhus?",
        mode="hybrid",
        lookups=("Who opened the bridge in Aarhus?",),
        top_k=2,
        as_of=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        namespace="sport",
        wanted=DocumentFilter(
            ("The Example",),
            (),
            datetime(2026, 1, 1, tzinfo=UTC),
            labels=(("section=local",), ("tags=market", "tags=7"), ("pinned=true",)),
        ),
        min_score=0.1,
        memory_weight=1.5,
        sampling=Sampling(0.5, 0.9, 3),
        stop=("x",),
        max_new_tokens=7,
        deadline_s=9.0,
        citations=True,
    )
    assert engine.asked == [wanted]


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        ("cmt", "auto"),
        ("cmt-memory", "memory"),
        ("cmt-rag", "rag"),
        ("cmt-hybrid", "hybrid"),
        ("cmt-closed", "closed"),
    ],
)
def test_model_name_is_a_mode_and_the_mode_field_wins(model: str, mode: str) -> None:
    assert chat(model=model).json()["cmt"]["mode"] == mode
    assert chat(model=model, cmt={"mode": "closed"}).json()["cmt"]["mode"] == "closed"


def test_sources_are_named_in_answers_where_the_service_or_the_request_says_so() -> None:
    plain, cited = (
        "Mayor Lund opened the bridge in Aarhus on Monday.",
        "Mayor Lund opened the bridge in Aarhus on Monday [1].",
    )
    for flags, asked, said in (
        ({}, {}, plain),
        ({}, {"citations": True}, cited),
        ({"serve__citations": True}, {}, cited),
        ({"serve__citations": True}, {"citations": False}, plain),
    ):
        reply = call("POST", "/v1/chat/completions", json=QUESTION | {"cmt": asked}, flags=dict(flags))
        assert reply.json()["choices"][0]["message"]["content"] == said


def test_follow_up_is_looked_up_with_its_last_turn_and_a_new_topic_without() -> None:
    engine = LocalEngine()
    publish(engine.bank, engine.model, "ferry", "The ferry to Samso was cancelled by a storm.")
    turns = [*QUESTION["messages"], {"role": "assistant", "content": "Mayor Lund"}]
    follow_up = chat(engine, messages=[*turns, {"role": "user", "content": "And who paid for it?"}]).json()
    assert follow_up["sources"][0]["doc_id"] == "a-1"
    topic = chat(engine, messages=[*turns, {"role": "user", "content": "Why was the ferry to Samso cancelled?"}]).json()
    assert topic["sources"][0]["doc_id"] == "ferry"
    first, _ = engine.asked
    assert first.question == "And who paid for it?"
    assert first.lookups == (
        "And who paid for it?",
        "Who opened the bridge in Aarhus? Mayor Lund And who paid for it?",
    )
    assert first.earlier == (("Who opened the bridge in Aarhus?", "Mayor Lund"),)
    assert chat(engine, messages=[{"role": "user", "content": "And who paid for it?"}]).json()["sources"] == []


def test_question_for_which_the_bank_holds_nothing_relevant_is_answered_with_i_do_not_know() -> None:
    body = chat(messages=[{"role": "user", "content": "Which comet was seen over Skagen?"}]).json()
    assert body["choices"][0]["message"]["content"] == UNKNOWN
    assert body["sources"] == []
    assert body["cmt"]["known"] is False
    assert "nothing that is relevant" in body["cmt"]["notes"][0]
    strict = chat(cmt={"min_score": 0.99}).json()
    assert strict["choices"][0]["message"]["content"] == UNKNOWN


def test_text_completion_answers_its_prompt() -> None:
    body = call("POST", "/v1/completions", json=PROMPT | {"max_tokens": 4}).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "Mayor Lund opened the"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["sources"][0]["doc_id"] == "a-1"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_text_completion_refuses_what_cannot_be_done(fields: dict[str, Any], param: str) -> None:
    answer = call("POST", "/v1/completions", json=PROMPT | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_stream_is_chunks_of_text_then_sources_then_usage_then_done() -> None:
    first, *middle, last, usage = events_of(chat(stream=True, stream_options={"include_usage": True}))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(event["choices"][0]["delta"]["content"] for event in middle)
    assert text == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert {event["object"] for event in (first, *middle, last)} == {"chat.completion.chunk"}
    assert len({event["id"] for event in (first, *middle, last, usage)}) == 1
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["sources"][0]["doc_id"] == "a-1"
    assert last["sources"][0]["weight"] == pytest.approx(1.0)
    assert last["cmt"]["model_id"] == "lexical-1"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 9


def test_text_stream_and_usage_only_when_asked_for() -> None:
    *middle, last = events_of(call("POST", "/v1/completions", json=PROMPT | {"stream": True}))
    assert (
        "".join(event["choices"][0]["text"] for event in middle) == "Mayor Lund opened the bridge in Aarhus on Monday."
    )
    assert last["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in last


def test_stream_that_cannot_begin_is_a_plain_refusal() -> None:
    assert chat(stream=True, model="gpt-5").status_code == 404
    assert chat(stream=True, cmt={"deadline_s": 1e-9}).status_code == 504


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
        ({"n": 2}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"temperature": 2.5}, "temperature"),
        ({"cmt": {"mode": "magic"}}, "cmt.mode"),
        ({"cmt": {"memory_weight": 3}}, "cmt.memory_weight"),
        ({"cmt": {"filters": {"author": "x"}}}, "cmt.filters.author"),
        ({"cmt": {"filters": {"metadata": {"": "x"}}}}, "cmt.filters.metadata"),
        ({"cmt": {"filters": {"metadata": {"a": None}}}}, "cmt.filters.metadata"),
        ({"cmt": {"filters": {"metadata": {"a": []}}}}, "cmt.filters.metadata"),
        ({"cmt": {"filters": {"metadata": {"a": ["b", {"c": "d"}]}}}}, "cmt.filters.metadata"),
        ({"cmt": {"filters": {"metadata": {str(n): n for n in range(17)}}}}, "cmt.filters.metadata"),
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


def test_text_that_is_not_unicode_is_a_400() -> None:
    for path, body in (
        ("/v1/chat/completions", QUESTION | {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("/v1/search", {"query": "\ud800"}),
        ("/v1/search", {"query": "x", "namespace": "\ud800"}),
        ("/v1/search", {"query": "x", "filters": {"metadata": {"\ud800": "x"}}}),
        ("/v1/search", {"query": "x", "filters": {"metadata": {"x": ["y", "\udfff"]}}}),
    ):
        answer = call("POST", path, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert "unicode" in answer.json()["error"]["message"].lower()


def test_unknown_model_is_a_404_that_names_the_known_ones() -> None:
    answer = chat(model="gpt-5")
    assert answer.status_code == 404
    assert "cmt-rag" in answer.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"n": 1}, {"tools": []}, {"seed": 4, "user": "u"}, {"presence_penalty": 0}])
def test_default_values_of_unsupported_fields_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields).status_code == 200


def test_seed_decides_a_drawn_answer() -> None:
    def drawn(seed: int) -> str:
        content: str = chat(temperature=1, seed=seed).json()["choices"][0]["message"]["content"]
        return content

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(5)}) > 1


def test_answer_ends_before_the_first_stop_string() -> None:
    choice = chat(stop=["Monday", " the bridge"]).json()["choices"][0]
    assert choice["message"]["content"] == "Mayor Lund opened"
    assert choice["finish_reason"] == "stop"


def test_token_limit_ends_an_answer_with_length() -> None:
    choice = chat(max_tokens=3).json()["choices"][0]
    assert choice["message"]["content"] == "Mayor Lund opened"
    assert choice["finish_reason"] == "length"


KEYS = {"serve__api_keys": {"desk": hash_of("s3cret"), "other": hash_of("0ther")}}


def test_api_key_guards_v1_and_nothing_else() -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        for path in ("/v1/models", "/v1/stats", "/v1/documents/a-1", "/v1/events"):
            refused = call("GET", path, headers=headers, flags=dict(KEYS))
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
    for key in ("s3cret", "0ther"):
        allowed = call("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"}, flags=dict(KEYS))
        assert [model["id"] for model in allowed.json()["data"]] == [
            "cmt",
            "cmt-memory",
            "cmt-rag",
            "cmt-hybrid",
            "cmt-closed",
        ]
    assert call("GET", "/healthz", flags=dict(KEYS)).status_code == 200


def test_each_key_has_a_rate_of_its_own() -> None:
    async def run() -> list[int]:
        settings = load_settings(**KEYS, serve__rate_per_minute=6.0)
        async with client_of(LocalEngine(), settings) as client:
            keys = ("s3cret", "s3cret", "0ther")
            sent = [
                await client.post("/v1/chat/completions", json=QUESTION, headers={"Authorization": f"Bearer {key}"})
                for key in keys
            ]
            assert sent[1].json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(sent[1].headers["Retry-After"]) <= 10
            return [answer.status_code for answer in sent]

    assert asyncio.run(run()) == [200, 429, 200]


@pytest.mark.parametrize("declared", [True, False])
def test_large_body_is_refused_whether_or_not_it_tells_its_length(declared: bool) -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b" " * 1024

    content: Any = b" " * 40960 if declared else pieces()
    answer = call(
        "POST",
        "/v1/chat/completions",
        content=content,
        headers={"Content-Type": "application/json"},
        flags={"serve__max_body_bytes": 32768},
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_prompt_with_too_many_tokens_is_refused_in_openai_words() -> None:
    engine = LocalEngine(options=SchedulerOptions(max_prompt_tokens=20))
    assert chat(engine).status_code == 200
    answer = chat(engine, model="cmt-rag", messages=[{"role": "user", "content": "Who opened the bridge? " * 4}])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_loopback_service_without_keys_answers_to_loopback_names_only() -> None:
    assert call("GET", "/healthz", headers={"Host": "localhost:8000"}).status_code == 200
    assert call("GET", "/healthz", headers={"Host": "[::1]:8000"}).status_code == 200
    refused = call("GET", "/healthz", headers={"Host": "rebound.example"})
    assert refused.status_code == 421
    assert "loopback" in refused.json()["error"]["message"]
    assert call("GET", "/healthz", headers={"Host": "news.example"}, flags=dict(KEYS)).status_code == 200


def test_other_origins_are_let_in_only_when_named() -> None:
    headers = {"Origin": "https://desk.example"}
    assert "access-control-allow-origin" not in call("GET", "/healthz", headers=headers).headers
    allowed = call("GET", "/healthz", headers=headers, flags={"serve__cors_origins": ["https://desk.example"]})
    assert allowed.headers["access-control-allow-origin"] == "https://desk.example"


def test_document_is_shown_with_its_history_and_deleted_by_a_tombstone() -> None:
    async def run() -> None:
        tombstones = SentTombstones()
        async with client_of(LocalEngine(), tombstones=tombstones) as client:
            body = (await client.get("/v1/documents/a-1")).json()
            assert (body["id"], body["namespace"], body["state"]) == ("a-1", "default", "live")
            assert body["history"][0]["text"] == BRIDGE
            missing = await client.get("/v1/documents/https://news.example/never?namespace=sport")
            assert missing.status_code == 404
            assert "https://news.example/never" in missing.json()["error"]["message"]
            known = await client.delete("/v1/documents/a-1")
            assert (known.status_code, known.json()["known"]) == (202, True)
            coming = await client.delete("/v1/documents/on/its/way?namespace=sport")
            assert (coming.status_code, coming.json()["known"]) == (202, False)
            assert tombstones.sent == [("default", "a-1"), ("sport", "on/its/way")]

    asyncio.run(run())


def test_log_holds_no_question_and_no_document(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = LocalEngine()
    assert chat(engine).status_code == 200
    foreign = window("z", "secret zebra", memory=b"of another checkpoint")
    engine.bank.add(engine.model.query_keys(["secret zebra"]).vectors[0], foreign)
    assert chat(engine, messages=[{"role": "user", "content": "secret zebra"}]).status_code == 400
    assert "a question failed" in caplog.text
    for word in ("zebra", "Lund", "bridge"):
        assert word not in caplog.text


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
        async def ask(self, ask: Ask) -> Any:
            raise KeyError("secret detail")
            yield

    async def run() -> tuple[httpx.Response, str]:
        service = QueryService(load_settings(), Broken(), Metrics(), no_snapshots, SentTombstones())
        transport = httpx.ASGITransport(create_api(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
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
    headers = call("GET", "/v1/models").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"


def test_openapi_describes_every_route_and_promises_no_422() -> None:
    described = call("GET", "/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/search",
        "/v1/documents/{doc_id}",
        "/v1/starters",
        "/v1/stats",
        "/v1/events",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for path in described["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]
            assert operation["description"]
    assert "HTTPBearer" in call("GET", "/openapi.json", flags=dict(KEYS)).json()["components"]["securitySchemes"]
