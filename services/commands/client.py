"""Asks a running query service over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from services.errors import ServiceError, SettingsError
from services.query.gateway.addresses import is_loopback
from services.settings import Settings

__all__ = ["ask_service", "service_stats", "service_url", "stream_answer"]

_TIMEOUT_S = 120.0


class _Fact(BaseModel):
    """What the commands read of an answer, whatever else is in it; a ValueError says that another program gave it."""

    model_config = ConfigDict(extra="allow")


class _Delta(_Fact):
    content: str | None = None


class _Choice(_Fact):
    delta: _Delta


class _Source(_Fact):
    weight: float | None
    title: str | None
    doc_id: str
    url: str | None


class _AnswerFacts(_Fact):
    notes: list[str] = []


class _Chunk(_Fact):
    choices: list[_Choice]
    sources: list[_Source] = []
    cmt: _AnswerFacts = _AnswerFacts()


class _Latest(_Fact):
    title: str | None
    doc_id: str


class _Stats(_Fact):
    documents: int
    latest: list[_Latest]


def service_url(settings: Settings) -> str:
    """Where the settings say that the service is."""
    host = "127.0.0.1" if settings.serve.host in ("0.0.0.0", "::", "") else settings.serve.host
    return settings.client.url or f"http://{f'[{host}]' if ':' in host else host}:{settings.serve.port}"


def ask_service(
    url: str,
    settings: Settings,
    question: str,
    model: str,
    top_k: int | None = None,
    instructions: str = "",
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """The response to one question, as POST /v1/chat/completions gives it; `instructions` are a system message.

    Raises ServiceError in one line.
    """
    messages = [{"role": "system", "content": instructions}] if instructions else []
    body: dict[str, Any] = {"model": model, "messages": [*messages, {"role": "user", "content": question}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if top_k is not None:
        body["cmt"] = {"top_k": top_k}
    with _client(url, settings) as client, _one_line(url):
        response = client.post(_address(url), json=body)
        _refuse_errors(url, response)
        reply: dict[str, Any] = response.json()
        return reply


def service_stats(url: str, settings: Settings, namespace: str) -> dict[str, Any]:
    """What GET /v1/stats says, with the latest article. Raises ServiceError in one line."""
    with _client(url, settings) as client, _one_line(url):
        response = client.get(_address(url, "stats"), params={"latest": 1, "namespace": namespace})
        _refuse_errors(url, response)
        stats: dict[str, Any] = response.json()
        _Stats.model_validate(stats)
        return stats


def stream_answer(url: str, settings: Settings, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer, the last one with `sources` and `cmt`. Raises ServiceError in one line."""
    asked = body | {"stream": True}
    with (
        _client(url, settings) as client,
        _one_line(url),
        client.stream("POST", _address(url), json=asked) as response,
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
            if isinstance(chunk, dict) and "error" in chunk:
                raise ServiceError(f"{url} stopped in the middle of the answer: {_reason(chunk) or chunk['error']}")
            _Chunk.model_validate(chunk)
            yield chunk
        raise ServiceError(f"{url} ended the connection in the middle of the answer")


def _client(url: str, settings: Settings) -> httpx.Client:
    """Through the proxies of the environment, unless the service is on this machine: no proxy can reach it there.

    Raises SettingsError for a proxy that can't be used.
    """
    try:
        local = is_loopback(httpx.URL(url).host)
        return httpx.Client(headers=_headers(settings), timeout=_TIMEOUT_S, trust_env=not local)
    except httpx.InvalidURL as error:
        raise SettingsError(f"client.url {url!r} is no address such as http://127.0.0.1:8000: {error}") from None
    except (ValueError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"a proxy or certificate that the environment names can't be used: {reason}") from None


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(f"no query service at {url}: {error} (start one with `cmt serve`)") from None
    except ValueError:
        raise ServiceError(f"{url} does not answer like a query service: is it another program's address?") from None


def _address(url: str, route: str = "chat/completions") -> str:
    """The route below an address with or without the /v1 that OpenAI's clients want."""
    return f"{url.strip().rstrip('/').removesuffix('/v1').rstrip('/')}/v1/{route}"


def _headers(settings: Settings) -> dict[str, str]:
    key = settings.client.api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _refuse_errors(url: str, response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        return
    try:
        reason = _reason(response.json())
    except ValueError:
        reason = ""
    raise ServiceError(f"{url} answered {response.status_code}: {reason or response.reason_phrase}")


def _reason(reply: Any) -> str:
    """The message of an error in OpenAI's shape, empty where it has another."""
    try:
        return str(reply["error"]["message"])
    except (KeyError, TypeError):
        return ""
