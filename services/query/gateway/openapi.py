"""Makes /openapi.json say exactly what the routes answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from services.query.gateway.responses import ErrorBody

__all__ = ["EVENT_STREAM", "errors", "use_exact_openapi"]

Responses = dict[int | str, dict[str, Any]]

EVENT_STREAM: Responses = {
    200: {
        "description": "JSON, or server-sent events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_MEANINGS = {
    400: "the request can't be served as asked",
    401: "an API key is needed",
    404: "there is no such thing",
    413: "the body is too large",
    421: "asked for by a name that is not loopback",
    429: "too many questions; see Retry-After",
    500: "a bug",
    503: "the engine, the bank or Kafka can't be reached; see Retry-After",
    504: "the deadline has passed",
}


def errors(*statuses: int) -> Responses:
    """The refusals of a route; those that every route of /v1 has are added."""
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in (*statuses, 401, 421)}


def use_exact_openapi(api: FastAPI) -> None:
    """Takes out the 422 that FastAPI promises for every route: here a bad request is a 400 in OpenAI's shape."""
    make = api.openapi

    def exact() -> dict[str, Any]:
        described = make()
        for path in described["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        return described

    api.openapi = exact  # type: ignore[method-assign]
