"""Refusals as HTTP tells them: a status, and OpenAI's error envelope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.errors import Overloaded, ServiceError
from services.query.engine.messages import Failure

__all__ = ["ApiError", "error_body", "overloaded", "refusal"]


class ApiError(ServiceError):
    """A refusal with its HTTP status and OpenAI-style fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type_, param, code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"type": self.type, "param": self.param, "code": self.code, "headers": self.headers}
        return ApiError, (self.status, str(self)), state


def error_body(error: ApiError) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}


def refusal(failure: Failure) -> ApiError:
    """The HTTP form of a failure."""
    match failure.kind:
        case "question":
            return ApiError(400, f"the question can't be answered: {failure.message}", param="messages")
        case "too_long":
            return ApiError(400, failure.message, param="messages", code="context_length_exceeded")
        case "deadline":
            return ApiError(504, failure.message, type_="server_error", code="deadline_exceeded")
        case "bank":
            return _unavailable(failure.message, "bank_unavailable")
        case "engine":
            return _unavailable(failure.message, "engine_unavailable")
        case _:
            return ApiError(500, failure.message, type_="server_error", code="internal_error")


def overloaded(error: Overloaded, code: str = "queue_full") -> ApiError:
    """HTTP 429 that says when to come again."""
    wait = {"Retry-After": str(max(1, int(error.retry_after_s)))}
    return ApiError(429, str(error), type_="rate_limit_error", code=code, headers=wait)


def _unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, type_="server_error", code=code, headers={"Retry-After": "2"})
