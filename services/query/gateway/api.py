"""The HTTP routes of the query service as a FastAPI application; `create_api(service)` works without Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from services.errors import Overloaded
from services.query.gateway.addresses import is_loopback
from services.query.gateway.errors import ApiError, error_body, overloaded
from services.query.gateway.middleware import SECURITY_HEADERS, BodyLimit, HeadAsGet, LoopbackHosts, SecurityHeaders
from services.query.gateway.openapi import EVENT_STREAM, errors, use_exact_openapi
from services.query.gateway.requests import ChatRequest, CompletionRequest, Namespace, SearchRequest
from services.query.gateway.responses import (
    ChatCompletion,
    DeleteAccepted,
    Document,
    Model,
    ModelList,
    Ready,
    SearchResult,
    StarterList,
    Stats,
    TextCompletion,
)
from services.query.gateway.service import QueryService

__all__ = ["create_api"]

STATIC = Path(__file__).parent / "static"
InNamespace = Annotated[Namespace, Query(description="the documents' namespace")]
DocId = Annotated[str, InPath(min_length=1, max_length=1024)]
_SSE = "text/event-stream"
_UNBUFFERED = {"X-Accel-Buffering": "no"}  # a proxy in front must not collect a stream before it passes it on


def create_api(service: QueryService) -> FastAPI:
    """The application with all routes over `service`."""
    # FastAPI's own documentation pages load scripts from a CDN, so they are off; /openapi.json stays
    api = FastAPI(title="CMT query service", version="1", docs_url=None, redoc_url=None)
    options = service.options
    guards = [Depends(_guard(service))]
    if options.api_keys:
        guards.insert(0, Depends(HTTPBearer(auto_error=False, description="an API key")))
    for router in (_answers(service), _documents(service), _looks(service)):
        api.include_router(router, prefix="/v1", dependencies=guards)
    api.include_router(_operations(service))
    api.mount("/static", StaticFiles(directory=STATIC), name="static")
    api.add_middleware(HeadAsGet)
    api.add_middleware(BodyLimit, most_bytes=options.max_body_bytes)
    if options.cors_origins:
        api.add_middleware(CORSMiddleware, allow_origins=options.cors_origins, allow_methods=["*"], allow_headers=["*"])
    if is_loopback(options.host) and not options.api_keys and not options.allow_anonymous:
        api.add_middleware(LoopbackHosts)
    api.add_middleware(SecurityHeaders)
    for kind, handler in (
        (ApiError, _api_error),
        (RequestValidationError, _bad_request),
        (HTTPException, _http_error),
        (Exception, _bug),
    ):
        api.add_exception_handler(kind, handler)
    use_exact_openapi(api)
    return api


def _answers(service: QueryService) -> APIRouter:
    router = APIRouter(tags=["answers"])

    @router.post(
        "/chat/completions",
        response_model=ChatCompletion,
        responses=EVENT_STREAM | errors(400, 404, 413, 429, 500, 503, 504),
    )
    async def chat(body: ChatRequest, request: Request) -> Any:
        """Answer the last user message, from memory unless the model's name or `cmt.mode` says otherwise."""
        return _sent(await service.complete("chat", body, request.state.key))

    @router.post(
        "/completions",
        response_model=TextCompletion,
        responses=EVENT_STREAM | errors(400, 404, 413, 429, 500, 503, 504),
    )
    async def completions(body: CompletionRequest, request: Request) -> Any:
        """Answer the prompt."""
        return _sent(await service.complete("text", body, request.state.key))

    @router.post("/search", responses=errors(400, 413, 429, 500, 503))
    async def search(body: SearchRequest, request: Request) -> SearchResult:
        """What the bank holds for a query, relevant or not, without an answer."""
        return await service.search(body, request.state.key)

    return router


def _documents(service: QueryService) -> APIRouter:
    router = APIRouter(tags=["documents"])

    @router.get("/documents/{doc_id:path}", responses=errors(400, 404, 500, 503))
    async def document(doc_id: DocId, namespace: InNamespace = "default") -> Document:
        """A document with every version that the bank still has."""
        return await service.document(doc_id, namespace)

    @router.delete("/documents/{doc_id:path}", status_code=202, responses=errors(400, 404, 429, 500, 503))
    async def delete(doc_id: DocId, request: Request, namespace: InNamespace = "default") -> DeleteAccepted:
        """Send a tombstone through Kafka; the document is gone from answers as soon as ingest has seen it."""
        return await service.delete(doc_id, namespace, request.state.key)

    return router


def _looks(service: QueryService) -> APIRouter:
    router = APIRouter(tags=["status"])

    @router.get("/models", responses=errors(500))
    async def models() -> ModelList:
        """The ways to answer."""
        return service.models()

    @router.get("/models/{name}", responses=errors(404, 500))
    async def model(name: str) -> Model:
        """One way to answer."""
        return service.model(name)

    @router.get("/stats", responses=errors(400, 500, 503))
    async def stats(latest: Annotated[int, Query(ge=0, le=100)] = 12, namespace: InNamespace = "default") -> Stats:
        """Bank, ingest and question numbers, with the latest documents."""
        return await service.stats(latest, namespace)

    @router.get("/starters", responses=errors(400, 429, 500, 503))
    async def starters(n: Annotated[int, Query(ge=1, le=8)] = 4, namespace: InNamespace = "default") -> StarterList:
        """Questions to begin with: each was looked up just now, and the bank has something to answer it from."""
        return await service.starters(n, namespace)

    @router.get("/events", response_class=StreamingResponse, responses=EVENT_STREAM | errors(400, 429, 500, 503))
    async def events(
        namespace: InNamespace = "default",
        last_event_id: Annotated[str | None, Header(max_length=64, description="go on after this article")] = None,
    ) -> StreamingResponse:
        """Server-sent events: `article` as documents arrive, `stats` as numbers change."""
        try:
            stream = await service.events.listen(namespace, last_event_id)
        except Overloaded as error:
            raise overloaded(error, "too_many_listeners") from None
        return StreamingResponse(stream, media_type=_SSE, headers=_UNBUFFERED)

    return router


def _operations(service: QueryService) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the gateway lives."""
        return {"status": "ok"}

    @router.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "not yet"}})
    async def ready() -> Response:
        """Whether the LLM is loaded and the bank can be read."""
        reason = await service.readiness()
        body = Ready(status="not ready" if reason else "ready", reason=reason).model_dump(exclude_none=True)
        return JSONResponse(body, status_code=503 if reason else 200)

    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}, "description": "Prometheus"}})
    async def metrics() -> Response:
        """Metrics of all processes, in Prometheus' text format."""
        return Response(await service.metrics_page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    return router


def _sent(answer: Any) -> Any:
    if isinstance(answer, AsyncIterator):
        return StreamingResponse(answer, media_type=_SSE, headers=_UNBUFFERED)
    return answer


def _guard(service: QueryService) -> Any:
    async def guard(request: Request) -> None:
        request.state.key = service.keys.name_of(request.headers.get("authorization", ""))

    return guard


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error_body(error), status_code=error.status, headers=error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    detail = f"internal error: {type(error).__name__}"  # its text stays in the log, where Starlette writes the trace
    headers = SECURITY_HEADERS  # this answer is written outside of the middlewares
    return await _api_error(
        request, ApiError(500, detail, type_="server_error", code="internal_error", headers=headers)
    )


async def _bad_request(request: Request, error: Exception) -> Response:
    """The first thing wrong with a request, in OpenAI's shape (FastAPI's own would be a 422 with a list)."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return await _api_error(request, ApiError(400, "the body is not valid JSON", code="invalid_json"))
    sent_as = request.headers.get("content-type", "")
    if first["loc"] == ("body",) and isinstance(error.body, bytes) and not _is_json(sent_as):
        detail = f"send JSON with the header Content-Type: application/json, not {sent_as or 'without one'!a}"
        return await _api_error(request, ApiError(400, detail, code="unsupported_content_type"))
    param = ".".join(str(part) for part in first["loc"][1:] if not str(part).startswith(("str", "list[", "function-")))
    what = "no such parameter" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return await _api_error(request, ApiError(400, f"{param or 'body'}: {what}", param=param or None, code=code))


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status_code, "http_error")
    refused = ApiError(error.status_code, str(error.detail), code=code, headers=error.headers or {})
    return await _api_error(_, refused)
