"""What every HTTP exchange goes through: a bound on the body, the host's name, the security headers, HEAD (plain ASGI)."""

from __future__ import annotations

import asyncio
import json

from fastapi.exceptions import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.query.gateway.addresses import is_loopback
from services.query.gateway.errors import ApiError, error_body

__all__ = ["SECURITY_HEADERS", "BodyLimit", "HeadAsGet", "LoopbackHosts", "SecurityHeaders"]

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """Adds the headers that keep other pages out; what is not the page itself must not be cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        # the page is revalidated by ETag: an upgrade shows at once
        cached = "no-cache" if path == "/" or path.startswith("/static") else "no-store"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS | {"Cache-Control": cached})
            await send(message)

        await self._app(scope, receive, send_with_headers)


class BodyLimit:
    """Refuses a body over `most_bytes`, by its declared length or, where none is declared, as soon as more has come."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self._most_bytes:
            await _refuse(send, self._too_large())
            return
        came = 0

        async def receive_within() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most_bytes:
                raise HTTPException(413, str(self._too_large()))  # FastAPI passes its own on
            return message

        await self._app(scope, receive_within, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most_bytes} bytes", code="body_too_large")


class LoopbackHosts:
    """Answers requests to loopback names only: without API keys, a foreign page must not reach us by a name that it
    points to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (host := Headers(scope=scope).get("host")):
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if not is_loopback(name.strip("[]").rstrip(".").lower()):
                detail = (
                    f"without API keys this service answers to loopback names only, not to {name!a}: ask 127.0.0.1, or "
                    "start it with --allow-anonymous (serve.allow_anonymous) or with keys (`cmt key NAME`)"
                )
                await _refuse(send, ApiError(421, detail, code="misdirected_request"))
                return
        await self._app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD on every route as GET, without the body; the route is cancelled once its headers are known, since a
    stream of events would never end by itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        begun = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                begun.set()

        answering = asyncio.ensure_future(self._app({**scope, "method": "GET"}, receive, send_head))
        begins = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait((answering, begins), return_when=asyncio.FIRST_COMPLETED)
            if not begun.is_set():
                await answering
        finally:
            for task in (answering, begins):
                task.cancel()
            await asyncio.gather(answering, begins, return_exceptions=True)


async def _refuse(send: Send, error: ApiError) -> None:
    body = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
