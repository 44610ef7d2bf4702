"""Asks a running query service over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from services.errors import ServiceError
from services.settings import Settings

__all__ = ["ask_service"]

_TIMEOUT_S = 120.0


def ask_service(url: str, settings: Settings, question: str, model: str, top_k: int | None = None) -> dict[str, Any]:
    """The response to one question, as POST /v1/chat/completions gives it. Raises ServiceError in one line."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    if top_k is not None:
        body["cmt"] = {"top_k": top_k}
    key = settings.serve.api_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        response = httpx.post(f"{url.rstrip('/')}/v1/chat/completions", json=body, headers=headers, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(f"no query service at {url}: {error} (start one with `cmt serve`)") from None
    if response.status_code != httpx.codes.OK:
        raise ServiceError(f"{url} answered {response.status_code}: {_reason(response)}")
    reply: dict[str, Any] = response.json()
    return reply


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
