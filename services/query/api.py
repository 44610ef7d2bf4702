"""The HTTP routes of the query service as a FastAPI application; `create_api(service)` works without Ray."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from services.query.schema import ApiError, ChatRequest, SearchRequest, error_body
from services.query.service import QueryService

__all__ = ["create_api"]

STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_api(service: QueryService) -> FastAPI:
    """The application with all routes over `service`."""
    # FastAPI's own documentation pages load scripts from a CDN, so they are off; /openapi.json stays
    api = FastAPI(title="CMT query service", version="1", docs_url=None, redoc_url=None)
    api.include_router(_v1(service), prefix="/v1", dependencies=[Depends(_key_guard(service.api_key))])
    api.include_router(_operations(service))
    api.mount("/static", StaticFiles(directory=STATIC), name="static")
    api.middleware("http")(_with_headers)
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(RequestValidationError, _bad_body)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Exception, _bug)
    return api


def _v1(service: QueryService) -> APIRouter:
    router = APIRouter()

    @router.post("/chat/completions")
    async def chat(request: ChatRequest) -> dict[str, Any]:
        return await service.chat(request)

    @router.post("/search")
    async def search(request: SearchRequest) -> dict[str, Any]:
        return await service.search(request)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return service.models()

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return service.model(name)

    @router.get("/stats")
    async def stats(
        latest: Annotated[int, Query(ge=0, le=100)] = 12,
        namespace: Annotated[str, Query(min_length=1, max_length=128)] = "default",
    ) -> dict[str, Any]:
        return await service.stats(latest, namespace)

    return router


def _operations(service: QueryService) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    async def ready() -> Response:
        reason = await service.readiness()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(await service.metrics_page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    return router


def _key_guard(key: str | None) -> Callable[[Request], Awaitable[None]]:
    async def guard(request: Request) -> None:
        if key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            detail = "this service needs an API key: send `Authorization: Bearer KEY`"
            wanted = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, detail, type_="authentication_error", code="invalid_api_key", headers=wanted)

    return guard


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    response.headers.update(_HEADERS)
    if request.url.path == "/" or request.url.path.startswith("/static"):
        response.headers["Cache-Control"] = "no-cache"  # revalidated by ETag: an upgrade shows at once
    else:
        response.headers["Cache-Control"] = "no-store"
    return response


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error_body(error), status_code=error.status, headers=error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    detail = f"internal error: {type(error).__name__}"  # its text stays in the log, where Starlette writes the trace
    return await _api_error(request, ApiError(500, detail, type_="server_error", code="internal_error"))


async def _bad_body(_: Request, error: Exception) -> Response:
    """The first thing wrong with a request, in OpenAI's shape (FastAPI's own would be a 422 with a list)."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return await _api_error(_, ApiError(400, "the body is not valid JSON"))
    param = ".".join(str(part) for part in first["loc"][1:] if part not in ("str", "list[TextPart]"))
    what = "no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return await _api_error(_, ApiError(400, f"{param or 'body'}: {what}", param=param or None, code=code))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _api_error(_, ApiError(error.status_code, str(error.detail), code="http_error"))
