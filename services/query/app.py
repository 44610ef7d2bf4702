"""The query service on Ray Serve: deployment `Engine` holds the LLM, deployment `Gateway` speaks HTTP.

url = start(settings)     # Ray must be initialised
...
stop()
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.schema import LoggingConfig

from services.errors import PortInUse, ServiceError
from services.metrics import Metrics, Snapshot
from services.metrics_hub import MetricsPusher, hub_handle
from services.models import load_cmt
from services.query.api import create_api
from services.query.engine import Answerer, Ask, Failure, Found, Overview, Reply
from services.query.lazy_reader import LazyReader
from services.query.ports import AnsweringModel, BankFactory, MemoryReader, ModelFactory
from services.query.schema import ApiError
from services.query.service import QueryService
from services.settings import Settings
from services.threads import use_all_cores

__all__ = [
    "APP_NAME",
    "Engine",
    "Gateway",
    "build_app",
    "load_cmt",
    "open_bank",
    "refuse_taken_port",
    "remove",
    "start",
    "stop",
]

APP_NAME = "cmt"
_LOOK_S = 3.0  # how long a look at the bank may take before the engine counts as not reachable

T = TypeVar("T")
_kept: list[Any] = []  # the metrics hub lives as long as this process holds its handle


def open_bank(settings: Settings, model: AnsweringModel) -> MemoryReader:
    """The bank that the settings name, in the layout of the model."""
    from services.bank.reader import BankReader
    from services.bank.schema import BankLayout

    layout = BankLayout(model_id=model.model_id, d_key=model.d_key, memory_bytes=model.memory_bytes)
    options = {name: secret.get_secret_value() for name, secret in settings.bank.storage_options.items()}
    return BankReader(settings.bank.uri, layout, settings.serve.read_staleness_s, options)


class Engine:
    """The LLM with a reader of the bank; questions are batched and the model works in a thread of its own."""

    def __init__(self, settings: Settings, model_factory: ModelFactory, bank_factory: BankFactory) -> None:
        use_all_cores(settings.serve.gpus)
        metrics = Metrics()
        model = model_factory(settings)
        bank = LazyReader(lambda: bank_factory(settings, model))
        self._answerer = Answerer(model, bank, top_k=settings.serve.top_k, metrics=metrics)
        self._answerer.overview(1, "default")  # the first look loads the bank's libraries, which takes a second
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._look_threads = ThreadPoolExecutor(2, thread_name_prefix="bank")
        self._answer_batch.set_max_batch_size(settings.serve.max_batch)
        self._answer_batch.set_batch_wait_timeout_s(settings.serve.batch_wait_s)
        self._pusher = MetricsPusher(f"engine-{uuid.uuid4().hex[:12]}", metrics)

    async def ask(self, ask: Ask) -> Reply | Failure:
        """Answers one question together with those that arrive at the same time."""
        outcome: Reply | Failure = await self._answer_batch(ask)
        return outcome

    async def search(self, ask: Ask) -> Found | Failure:
        """What the bank holds for a question."""
        return await _in(self._model_thread, lambda: self._answerer.search(ask))

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its latest documents; never waits behind the model."""
        return await _in(self._look_threads, lambda: self._answerer.overview(n, namespace))

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.02)  # type: ignore[untyped-decorator, unused-ignore]
    async def _answer_batch(self, asks: list[Ask]) -> list[Reply | Failure]:
        return await _in(self._model_thread, lambda: self._answerer.answer(asks))


class Gateway:
    """The HTTP side: admission, OpenAI's schema, statistics, metrics of all processes, the page."""

    def __init__(self, settings: Settings, engine: Any) -> None:
        self._service = QueryService(settings, _RemoteEngine(engine), Metrics(), _Hub().snapshots)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service)


class _RemoteEngine:
    """The engine's deployment handle, with Ray's errors turned into HTTP 503."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._seen = False

    async def ask(self, ask: Ask) -> Reply | Failure:
        await self._must_be_up()
        outcome: Reply | Failure = await _reached(self._handle.ask.remote(ask))
        return outcome

    async def search(self, ask: Ask) -> Found | Failure:
        await self._must_be_up()
        found: Found | Failure = await _reached(self._handle.search.remote(ask))
        return found

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        try:
            seen: Overview | Failure = await asyncio.wait_for(
                _reached(self._handle.overview.remote(n, namespace)), _LOOK_S
            )
        except TimeoutError:
            raise _unavailable("the engine does not answer" if self._seen else "the LLM is still loading") from None
        self._seen = True
        return seen

    async def _must_be_up(self) -> None:
        """A question must not wait in Serve's router for minutes while the LLM is loading."""
        if not self._seen:
            await self.overview(0, "default")


class _Hub:
    """The snapshots in the metrics hub; none while it can't be reached."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def snapshots(self) -> list[Snapshot]:
        try:
            self._handle = self._handle or hub_handle()
            found: list[Snapshot] = await asyncio.wait_for(self._handle.snapshots.remote(), 2.0)
        except (RayError, TimeoutError, ValueError):
            self._handle = None
            return []
        return found


def build_app(settings: Settings, model_factory: ModelFactory, bank_factory: BankFactory) -> Any:
    """The Serve application, not yet deployed."""
    options = settings.serve
    # the gateway bounds the questions, so the engine's own bound must leave room for looks at the bank
    inside = options.max_queued + options.max_batch * options.replicas + 64
    engine = serve.deployment(
        name="Engine",
        num_replicas=options.replicas,
        max_ongoing_requests=inside,
        max_constructor_retry_count=1,
        ray_actor_options={"num_gpus": options.gpus, "num_cpus": 0 if options.gpus else 1},
    )(Engine)
    gateway = serve.deployment(name="Gateway", max_ongoing_requests=inside + 1024, ray_actor_options={"num_cpus": 0})(
        serve.ingress()(Gateway)
    )
    return gateway.bind(settings, engine.bind(settings, model_factory, bank_factory))


def start(settings: Settings, *, model_factory: ModelFactory = load_cmt, bank_factory: BankFactory = open_bank) -> str:
    """Deploys the service, waits until the LLM is loaded, and gives its URL.

    Raises PortInUse when the port is taken and ServiceError when the engine can't start; Ray must be initialised.
    """
    host, port = settings.serve.host, settings.serve.port
    refuse_taken_port(host, port)
    _kept[:] = [hub_handle()]
    logs = LoggingConfig(log_level=settings.log_level, enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(settings.log_level)
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config=logs)
        serve.run(
            build_app(settings, model_factory, bank_factory), name=APP_NAME, route_prefix="/", logging_config=logs
        )
    except (RuntimeError, RayError, RayServeException) as error:
        reason = _why_not_deployed() or _last_line(str(error))
        serve.shutdown()
        raise ServiceError(f"the query service can't start: {reason}") from None
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://{shown}:{port}"


def remove() -> None:
    """Takes this application down after its open requests; Serve itself and other applications stay."""
    if ray.is_initialized():
        serve.delete(APP_NAME)


def stop() -> None:
    """Takes Serve down and frees its port; harmless when it is not running."""
    if ray.is_initialized():
        serve.shutdown()


def refuse_taken_port(host: str, port: int) -> None:
    """Raises PortInUse when something listens there: Serve binds with SO_REUSEPORT and would silently share the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(f"port {port} on {host} can't be used: {error.strerror or error}") from None


def _why_not_deployed() -> str | None:
    """What a deployment's constructor raised; Serve's own error only names the deployment."""
    application = serve.status().applications.get(APP_NAME)
    messages = [one.message for one in application.deployments.values()] if application else []
    return next((_last_line(message) for message in messages if "Traceback" in message), None)


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


async def _reached(response: Any) -> Any:
    try:
        return await response
    except BackPressureError:
        wait = {"Retry-After": "1"}
        detail = "the engine's queue is full"
        raise ApiError(429, detail, type_="rate_limit_error", code="queue_full", headers=wait) from None
    except (RayError, RayServeException) as error:
        raise _unavailable(f"the engine failed: {_last_line(str(error))}") from None


def _unavailable(reason: str) -> ApiError:
    return ApiError(503, reason, type_="server_error", code="engine_unavailable", headers={"Retry-After": "2"})


def _last_line(trace: str) -> str:
    """The exception's own line from a remote trace: `services.errors.BankMismatch: text` gives `text`."""
    lines: Sequence[str] = [line.strip() for line in trace.splitlines() if line.strip()]
    raised = [
        line for line in lines if re.match(r"[\w.]+(Error|Exception|Unavailable|Mismatch|Full|InUse)\b.*?: ", line)
    ]
    text = raised[-1] if raised else (lines[-1] if lines else "no reason was given")
    return re.sub(r"^(services|cmt_core)\.errors\.\w+: ", "", text)
