"""Asks a running query service over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from services.errors import ServiceError
from services.settings import Settings

__all__ = ["ask_service", "service_url", "stream_answer"]

_TIMEOUT_S = 120.0


def service_url(settings: Settings) -> str:
    """Where the settings say that the service is."""
    host = "127.0.0.1" if settings.serve.host in ("0.0.0.0", "::", "") else settings.serve.host
    return settings.client.url or f"http://{f'[{host}]' if ':' in host else host}:{settings.serve.port}"


def ask_service(url: str, settings: Settings, question: str, model: str, top_k: int | None = None) -> dict[str, Any]:
    """The response to one question, as POST /v1/chat/completions gives it. Raises ServiceError in one line."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    if top_k is not None:
        body["cmt"] = {"top_k": top_k}
    with _one_line(url):
        response = httpx.post(_address(url), json=body, headers=_headers(settings), timeout=_TIMEOUT_S)
        _refuse_errors(url, response)
        reply: dict[str, Any] = response.json()
        return reply


def stream_answer(url: str, settings: Settings, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer, the last one with `sources` and `cmt`. Raises ServiceError in one line."""
    asked = body | {"stream": True}
    with (
        _one_line(url),
        httpx.stream("POST", _address(url), json=asked, headers=_headers(settings), timeout=_TIMEOUT_S) as response,
    ):
        if response.status_code != httpx.codes.OK:
            response.read()
            _refuse_errors(url, response)
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return
            chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise ServiceError(f"{url} stopped in the middle of the answer: {chunk['error']['message']}")
            yield chunk
        raise ServiceError(f"{url} ended the connection in the middle of the answer")


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(f"no query service at {url}: {error} (start one with `cmt serve`)") from None
    except ValueError:
        raise ServiceError(f"{url} does not speak like a query service") from None


def _address(url: str) -> str:
    return f"{url.rstrip('/')}/v1/chat/completions"


def _headers(settings: Settings) -> dict[str, str]:
    key = settings.client.api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _refuse_errors(url: str, response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        return
    try:
        reason = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        reason = response.reason_phrase
    raise ServiceError(f"{url} answered {response.status_code}: {reason}")
