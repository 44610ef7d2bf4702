"""Histories and parameters as real clients send them: what need not be read is never an error, the rest is a documented 400."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.query.engine.scheduler import SchedulerOptions
from services.query.gateway.conversation import Message, conversation_of
from services.settings import load_settings
from tests.serving import BRIDGE, STREAMED, LocalEngine, client_of

ASKED = "Who opened the bridge in Aarhus?"
LAST = {"role": "user", "content": ASKED}
FIRST_SENTENCE = BRIDGE.partition(". ")[0] + "."
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


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


def chat(messages: list[Any], engine: LocalEngine | None = None, **fields: Any) -> httpx.Response:
    return send({"model": "cmt", "messages": messages} | fields, engine)


def send(body: dict[str, Any], engine: LocalEngine | None = None) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return call("POST", "/v1/chat/completions", engine, content=json.dumps(body).encode(), headers=headers)


def answer(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    "earlier",
    [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "f-1"}}, "a bare string"]},
        {"role": "assistant", "content": None, "refusal": "I can't help with that."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "annotations": []},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "{}"}]},
        {"role": "tool", "tool_call_id": "c", "content": {"rows": [1, 2]}},
        {"role": "function", "name": "f", "content": None},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "ipython", "content": "another maker's role"},
        {"role": "user", "content": "half an emoji \ud83d"},
        {"role": "user", "content": 17},
        {"role": "user"},
    ],
)
def test_history_that_is_not_read_is_never_an_error(earlier: dict[str, Any]) -> None:
    assert answer(chat([earlier, {"role": "assistant", "content": "ok"}, LAST])) == FIRST_SENTENCE


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | st.text(max_size=5)},
            optional={
                "content": st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
                    lambda inner: (
                        st.lists(inner, max_size=3)
                        | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner, max_size=3)
                    ),
                    max_leaves=6,
                )
            },
        ),
        max_size=8,
    )
)
@hypothesis_settings(max_examples=300)
def test_whatever_stands_before_the_question_can_be_passed_over(history: list[dict[str, Any]]) -> None:
    read = conversation_of([Message(**one) for one in [*history, LAST]], 1000)
    assert read.question == ASKED
    for text in [read.instructions, *read.lookups, *(side for turn in read.earlier for side in turn)]:
        text.encode()


def test_hundreds_of_messages_leave_the_last_three_turns() -> None:
    engine = LocalEngine()
    turns = [
        {"role": role, "content": f"{role} {n}"} for n in range(400) for role in ("user", "assistant")
    ]  # fmt: skip
    assert answer(chat([*turns, LAST], engine)) == FIRST_SENTENCE
    assert engine.asked[0].earlier == tuple((f"user {n}", f"assistant {n}") for n in (397, 398, 399))


def test_turn_is_the_question_with_its_last_answer_whatever_tools_said_between() -> None:
    engine = LocalEngine()
    history = [
        {"role": "user", "content": [IMAGE]},
        {"role": "assistant", "content": "an answer to a picture"},
        {"role": "user", "content": "Who paid?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": []},
        {"role": "tool", "content": "12 million"},
        {"role": "assistant", "content": [{"type": "text", "text": "The city."}]},
        {"role": "user", "content": "never answered"},
    ]
    assert answer(chat([*history, LAST], engine))
    assert engine.asked[0].earlier == (("Who paid?", "The city."),)


def test_history_longer_than_the_prompt_is_left_out_with_a_note() -> None:
    engine = LocalEngine(options=SchedulerOptions(max_prompt_tokens=40, shorten=False))
    long = [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "yes " * 500}]
    response = chat([*long, LAST], engine)
    assert answer(response)
    assert "earlier turns were not read" in response.json()["cmt"]["notes"][0]


def test_long_question_is_answered_from_its_beginning_and_end_and_says_so() -> None:
    """Open WebUI's title and RAG prompts are of this kind: a task around pages of quoted text."""
    for prompt in (f"{ASKED}\n{'filler ' * 3000}", f"{'filler ' * 3000}\n{ASKED}"):
        engine = LocalEngine(options=SchedulerOptions(max_prompt_tokens=300))
        response = chat([{"role": "user", "content": prompt}], engine, cmt={"min_score": -1})
        assert [one["doc_id"] for one in response.json()["sources"]] == ["a-1"]
        assert "the middle of the question was not read" in response.json()["cmt"]["notes"][0]
        assert all(len(text) <= 1000 for text in engine.asked[0].lookups)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/search"])
def test_question_beyond_the_limit_has_a_code_of_its_own(path: str) -> None:
    for length, status in ((50, 200), (51, 400)):
        text = "bridge " * 20
        messages = [{"role": "user", "content": text[:length].ljust(length, "x")}]
        body = {
            "/v1/chat/completions": {"model": "cmt", "messages": messages},
            "/v1/completions": {"model": "cmt", "prompt": messages[0]["content"]},
            "/v1/search": {"query": messages[0]["content"]},
        }[path]
        response = call("POST", path, json=body, flags={"serve__max_question_chars": 50})
        assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == "question_too_long"
    assert "serve.max_question_chars" in error["message"]


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "0001-06-01T00:00:00Z", "9999-12-31T23:59:59-11:00"])
def test_moments_that_no_clock_can_hold_are_a_400(moment: str) -> None:
    for cmt in (
        {"as_of": moment},
        {"filters": {"published_after": moment}},
        {"filters": {"published_before": moment}},
    ):
        response = chat([LAST], cmt=cmt)
        assert response.status_code == 400
        assert "years 2 to 9998" in response.json()["error"]["message"]
    assert call("POST", "/v1/search", json={"query": "x", "as_of": moment}).status_code == 400
    assert answer(chat([LAST], cmt={"as_of": "9998-12-31T23:59:59-11:00"}))


@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": None, "max_completion_tokens": 9, "temperature": 0.0},  # LangChain
        {"user": "u-1", "metadata": {"tags": ["a"]}, "store": False, "parallel_tool_calls": True},  # LiteLLM
        {"top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "n": 1, "logprobs": False, "top_logprobs": 0},
        {"tools": [], "tool_choice": "auto", "functions": None, "response_format": {"type": "text"}},  # LibreChat
        {"stop": ["\n\n", "###", "<|im_end|>", "</s>", "Human:", "Q:"], "max_tokens": 4096},  # Continue
        {"stop": "", "seed": 7, "reasoning_effort": "none", "modalities": ["text"], "service_tier": "auto"},
        {"cmt": None},
        {"cmt": {"namespace": None, "filters": None, "memory_weight": None, "top_k": None, "as_of": None}},
        {"cmt": {"filters": {"sources": None, "doc_ids": None, "published_after": None}}},
    ],
)
def test_parameters_that_clients_send_by_default_are_accepted(fields: dict[str, Any]) -> None:
    assert answer(chat([LAST], **fields))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"logprobs": True, "top_logprobs": 5}, "logprobs", "unsupported_parameter"),
        ({"reasoning": {"enabled": False}}, "reasoning", "unknown_parameter"),
        ({"top_k": 40}, "top_k", "unknown_parameter"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "unknown_parameter"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"stop": [None]}, "stop", "invalid_value"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": [{"content": "no role"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", "unsupported_content"),
    ],
)
def test_what_is_refused_is_a_400_with_the_documented_code(fields: dict[str, Any], param: str, code: str) -> None:
    response = send({"model": "cmt", "messages": [LAST]} | fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"].startswith(param), error["code"]) == (True, code), error


@pytest.mark.parametrize("sent_as", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_body_that_is_not_sent_as_json_is_told_which_header_to_send(sent_as: str) -> None:
    body = json.dumps({"model": "cmt", "messages": [LAST]}).encode()
    headers = {"Content-Type": sent_as} if sent_as else {}
    response = call("POST", "/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == "unsupported_content_type"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/v1/models", 200),
        ("/v1/models/cmt", 200),
        ("/v1/stats", 200),
        ("/v1/events", 200),  # as GET it never ends
        ("/v1/documents/a-1", 200),
        ("/v1/documents/never", 404),
        ("/static/never.js", 404),
        ("/v1/chat/completions", 405),
    ],
)
def test_head_is_get_without_the_body(path: str, status: int) -> None:
    response = call("HEAD", path)
    assert response.status_code == status
    assert response.content == b""
    if path != "/v1/events":
        assert response.headers["content-type"] == call("GET", path).headers["content-type"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.0.0.2", "[::1]:8000", "app.localhost"]
)
def test_loopback_names_are_answered_without_a_key(host: str) -> None:
    assert call("GET", "/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["host.docker.internal:8391", "rebound.example", "192.168.1.7:8000", "localhost.evil.example"]
)
def test_other_names_are_refused_unless_strangers_may_ask(host: str) -> None:
    refused = call("GET", "/v1/models", headers={"Host": host})
    assert refused.status_code == 421
    assert "--allow-anonymous" in refused.json()["error"]["message"]
    allowed = call("GET", "/v1/models", headers={"Host": host}, flags={"serve__allow_anonymous": True})
    assert allowed.status_code == 200
