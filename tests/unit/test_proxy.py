"""What Serve's proxies do around a request, with the ways in which a gateway behind them can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from ray.serve._private.constants import RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH as READ_BY_SERVE
from ray.serve._private.http_util import validate_http_proxy_callback_return
from starlette.types import ASGIApp, Receive, Scope, Send

from services.query.gateway.middleware import SecurityHeaders
from services.query.ray_serve.proxy import AskAgain, middlewares, proxy_environment

MARKED = [(b"x-content-type-options", b"nosniff")]


class Backend:
    """Stands where Serve's proxy stands: each request meets the next of `fates`, the last one again and again."""

    def __init__(self, *fates: Callable[[Backend, Scope, Receive, Send], Any]) -> None:
        self._fates = list(fates)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fate = self._fates.pop(0) if len(self._fates) > 1 else self._fates[0]
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await fate(self, scope, receive, send)


async def nothing(*_: Any) -> None:
    """What the proxy does when a gateway has died: it returns without a word."""


async def raises(*_: Any) -> None:
    raise RuntimeError("the actor died")


async def hangs(*_: Any) -> None:
    await asyncio.sleep(3600)


def says(status: int, *pieces: bytes, marked: bool = True, dies: bool = False) -> Any:
    async def fate(backend: Backend, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": MARKED if marked else []})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not dies:
            await send({"type": "http.response.body", "body": b""})

    return fate


def asked(app: ASGIApp, path: str = "/v1/chat/completions", content: Any = b"{}") -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post(path, content=content)

    return asyncio.run(run())


LOST = [nothing, raises, says(500, b"died", marked=False), says(503, marked=False), says(200, dies=True)]


@pytest.mark.parametrize("fate", LOST)
def test_a_request_that_got_no_answer_is_sent_again_with_its_body(fate: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"messages": '
        yield b"[]}"

    backend = Backend(fate, says(200, b"an", b"swer"))
    answer = asked(AskAgain(backend), content=pieces())
    assert (answer.status_code, answer.content) == (200, b"answer")
    assert backend.bodies == [b'{"messages": []}'] * 2


@pytest.mark.parametrize("fate", [nothing, raises, says(500, b"died", marked=False), says(429, marked=False), hangs])
def test_a_request_that_is_never_answered_is_503_with_a_time_to_come_again(fate: Any) -> None:
    backend = Backend(nothing, fate)
    answer = asked(AskAgain(backend, again_within_s=0.5))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert len(backend.bodies) >= 2


def test_before_there_is_a_route_the_service_is_starting() -> None:
    backend = Backend(says(404, b"Path '/readyz' not found.", marked=False))
    answer = asked(AskAgain(backend), "/readyz")
    assert (answer.status_code, "starting" in answer.text) == (503, True)
    assert len(backend.bodies) == 1


@pytest.mark.parametrize("status", [200, 404, 429, 500, 503])
def test_what_a_gateway_says_is_passed_on_as_it_is(status: int) -> None:
    backend = Backend(says(status, b"its own words"))
    answer = asked(AskAgain(backend))
    assert (answer.status_code, answer.content) == (status, b"its own words")
    assert len(backend.bodies) == 1


def test_the_gateways_mark_is_a_security_header_of_all_that_it_says() -> None:
    answer = asked(AskAgain(SecurityHeaders(Backend(says(503, marked=False)))))
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (503, "nosniff")


def test_serves_own_probes_are_left_alone() -> None:
    assert asked(AskAgain(Backend(says(503, b"draining", marked=False))), "/-/healthz").content == b"draining"


def test_a_stream_that_breaks_after_its_first_word_ends_and_is_not_begun_anew() -> None:
    """Over a real socket, where a server that stops in the middle shows as such."""
    backend = Backend(says(200, b"data: one\n\n", dies=True))

    async def run() -> bytes:
        config = uvicorn.Config(AskAgain(backend), port=0, log_level="critical", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        got = b""
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                async with client.stream("POST", f"http://127.0.0.1:{port}/", content=b"{}") as answer:
                    async for piece in answer.aiter_raw():
                        got += piece
            except httpx.RemoteProtocolError:
                got += b"(broken off)"
        server.should_exit = True
        await serving
        return got

    assert asyncio.run(run()) == b"data: one\n\n(broken off)"
    assert len(backend.bodies) == 1


def test_a_client_that_goes_away_is_not_asked_for() -> None:
    backend, sent = Backend(nothing), list[Any]()
    messages = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])

    async def gone(*arguments: Any) -> None:
        await arguments[2]()

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    backend = Backend(gone, says(200, b"x"))
    asyncio.run(AskAgain(backend)({"type": "http", "path": "/v1/search"}, receive, send))
    assert (sent, len(backend.bodies)) == ([], 1)


def test_ray_still_has_the_hook_and_takes_what_it_gives() -> None:
    environment = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "7"}
    proxy_environment(environment)
    assert environment["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] == "7"
    assert READ_BY_SERVE in (None, environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])
    assert [one.cls for one in validate_http_proxy_callback_return(middlewares())] == [AskAgain]
    assert json.dumps(environment)
