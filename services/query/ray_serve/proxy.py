"""What runs in Serve's HTTP proxies, one on each node, around every request: no client sees what happens behind them.

A gateway that dies with its node leaves the proxies of the other nodes without an answer, for which Serve's is HTTP 500; before
the service is deployed it is 404. Here the question is sent again, and refused with 503 and Retry-After when that does not help.
Proxies load `middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it: `proxy_environment` sets it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import MutableMapping

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AskAgain", "middlewares", "proxy_environment"]

_log = logging.getLogger(__name__)
_AGAIN_WITHIN_S = 20.0  # Serve starts a gateway on another node in the meantime
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_MOST_KEPT_BYTES = 8 * 2**20  # of a body; a longer one is refused by the gateway anyway
_PROXYS_OWN = {404, 408, 429, 500, 503}
_GATEWAYS_MARK = b"x-content-type-options"  # among the security headers, which every answer of a gateway has


def proxy_environment(environment: MutableMapping[str, str]) -> None:
    """What every process of a Ray that serves must find in its environment; keeps what is set."""
    environment.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "services.query.ray_serve.proxy:middlewares")
    environment.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine takes more than Ray's 5 s


def middlewares() -> list[Middleware]:
    """Serve's hook."""
    return [Middleware(AskAgain)]


class AskAgain:
    """Sends a request again when nothing came back, as long as its client has been told nothing.

    Every route can bear it: questions change nothing, and a deletion sent twice is one deletion.
    """

    def __init__(self, app: ASGIApp, again_within_s: float = _AGAIN_WITHIN_S) -> None:
        self._app, self._again_within_s = app, again_within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Serve's own probes
            await self._app(scope, receive, send)
            return
        body, reply = _Body(receive), _Reply(send)
        end, pause_s = 0.0, _FIRST_PAUSE_S
        while True:
            within_s = end - time.monotonic() if end else None
            await self._try(dict(scope), body, reply, within_s)
            if reply.begun or body.gone:
                return
            end = end or time.monotonic() + self._again_within_s
            if reply.refused == 404 or not body.whole or time.monotonic() + pause_s >= end:
                break
            _log.warning("a request was not answered and is sent again")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        await _refuse(send, "the service is starting" if reply.refused == 404 else "the service is changing nodes")

    async def _try(self, scope: Scope, body: _Body, reply: _Reply, within_s: float | None) -> None:
        """One attempt; it may take `within_s` until the reply begins, and then as long as it takes."""
        asked = asyncio.ensure_future(self._app(scope, body.again(), reply.send))
        begun = asyncio.create_task(reply.has_begun.wait())
        try:
            await asyncio.wait({asked, begun}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if reply.begun:
                await asked
            elif asked.done() and (error := asked.exception()) is not None:
                _log.warning("a request failed: %s", type(error).__name__)
        finally:
            begun.cancel()
            if not asked.done():
                asked.cancel()
                await asyncio.wait({asked})


class _Body:
    """A request's messages, kept so that they can be read again; `gone` when the client went away."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0
        self._complete = self.gone = False
        self.whole = True

    def again(self) -> Receive:
        """A receive function from the first message on."""
        read = 0

        async def receive() -> Message:
            nonlocal read
            if read < len(self._kept):
                read += 1
                return self._kept[read - 1]
            message = await self._receive()
            self._note(message)
            read = len(self._kept)
            return message

        return receive

    def _note(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.gone = True
            return
        self._bytes += len(message.get("body", b""))
        if self._bytes > _MOST_KEPT_BYTES:
            self._kept, self.whole = [], False
        elif self.whole:
            self._kept.append(message)


class _Reply:
    """Holds a reply's start back until its first piece; what the proxy says instead of a gateway never leaves."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.has_begun = asyncio.Event()
        self.refused: int | None = None

    @property
    def begun(self) -> bool:
        """Whether the client has been told anything."""
        return self.has_begun.is_set()

    async def send(self, message: Message) -> None:
        """Passes on what a gateway says."""
        if message["type"] == "http.response.start":
            self._start, self.refused = message, None
            names = {name.lower() for name, _ in message.get("headers", ())}
            if message["status"] in _PROXYS_OWN and _GATEWAYS_MARK not in names:
                self._start, self.refused = None, message["status"]
        elif self.refused is None:
            if self._start is not None:
                start, self._start = self._start, None
                self.has_begun.set()
                await self._send(start)
            await self._send(message)


async def _refuse(send: Send, why: str) -> None:
    error = {"message": f"{why}: try again in a moment", "type": "server_error", "param": None}
    body = json.dumps({"error": error | {"code": "service_unavailable"}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"2"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
