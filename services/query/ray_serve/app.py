"""The query service on Ray Serve: deployment `Engine` holds the LLM, deployment `Gateway` speaks HTTP.

url = start(settings)     # Ray must be initialised
...
stop()
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from services.metrics import Metrics
from services.metrics_hub import MetricsPusher, hub_handle
from services.models import load_answering
from services.query.engine.hot_swap import HotSwap, Target, target_of, with_target
from services.query.engine.lazy_reader import LazyReader
from services.query.engine.live import LiveEngine
from services.query.engine.messages import Ask, Event, Failure, HitList, Overview, ReplicaState, Versions
from services.query.engine.ports import (
    Answerer,
    AnsweringModel,
    BankFactory,
    BankModel,
    MemoryReader,
    ModelFactory,
    StreamingModel,
)
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.query.engine.streaming import StreamAnswerer
from services.query.gateway.addresses import refuse_taken_port, require_auth_beyond_loopback
from services.query.gateway.api import create_api
from services.query.gateway.service import QueryService
from services.query.gateway.tombstones import Tombstones
from services.query.ray_serve.deployment_errors import error_of
from services.query.ray_serve.remote import HubSnapshots, RemoteEngine, last_line
from services.settings import ServeSettings, Settings
from services.threads import use_all_cores

__all__ = [
    "APP_NAME",
    "Engine",
    "Gateway",
    "build_app",
    "load_answerer",
    "open_bank",
    "refuse_taken_port",
    "remove",
    "start",
    "stop",
    "why_not_ready",
]

_log = logging.getLogger(__name__)

APP_NAME = "cmt"
_VERSION = "1"  # of the code: equal for every deployment of this process, so that a new user_config restarts nothing
_HEALTH_EVERY_S = 3.0  # three failures in a row, and Serve replaces the replica
_LAST_WORDS_S = 0.1  # those who had a part of their answer are told, before the process ends
_REFUSAL_S = 1.0
_GATEWAY_DRAIN_S = 5.0  # open event streams never end by themselves

_kept: list[Any] = []  # the metrics hub lives as long as this process holds its handle


def open_bank(settings: Settings, model: BankModel) -> MemoryReader:
    """The bank that the settings name, in the layout of the model."""
    from cmt_core.retrieval.ranking import Ranking
    from services.bank.reader import BankReader
    from services.bank.schema import BankLayout

    layout = BankLayout(model_id=model.model_id, d_key=model.d_key, memory_bytes=model.memory_bytes)
    options = {name: secret.get_secret_value() for name, secret in settings.bank.storage_options.items()}
    serve = settings.serve
    ranking = Ranking(serve.ranking, serve.word_weight, serve.proximity_weight, serve.token_weight)
    staleness_s = settings.serve.read_staleness_s
    return BankReader(settings.bank.uri, layout, staleness_s, options, ranking=ranking, must_exist=True)


def load_answerer(
    settings: Settings,
    model_factory: ModelFactory,
    bank_factory: BankFactory,
    metrics: Metrics,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Answerer:
    """The model and the bank of the settings, ready to answer; `clock` says what "yesterday" is seen from."""
    serve_settings = settings.serve
    model = model_factory(settings)
    options = SchedulerOptions(
        max_batch=serve_settings.max_batch,
        top_k=serve_settings.top_k,
        min_score=serve_settings.min_score,
        every_chunk=serve_settings.every_chunk,
        max_prompt_tokens=serve_settings.max_prompt_tokens,
        shorten=serve_settings.long_prompt == "shorten",
        join_at_once=16 if serve_settings.gpus else 4,
        min_evidence=serve_settings.min_evidence,
        time_weight=serve_settings.time_weight,
        spell_answers=serve_settings.spell_answers,
        answer_candidates=serve_settings.answer_candidates,
        clock=clock,
    )
    bank = LazyReader(lambda: bank_factory(settings, model))
    answerer: Answerer
    if serve_settings.engine == "vllm":
        answerer = StreamAnswerer(cast(StreamingModel, model), bank, options, metrics)
    else:
        answerer = Scheduler(cast(AnsweringModel, model), bank, options, metrics)
    seen = answerer.overview(1, "default")  # the first look loads the bank's libraries, which takes a second
    if isinstance(seen, Failure):
        _log.warning("questions are refused until the bank can be read: %s", seen.message)
    return answerer


class Engine:
    """The LLM with a reader of the bank, in threads of their own."""

    def __init__(self, settings: Settings, model_factory: ModelFactory, bank_factory: BankFactory) -> None:
        use_all_cores(settings.serve.gpus, spin=True)
        metrics = Metrics()

        def load(target: Target) -> Answerer:
            return load_answerer(with_target(settings, target), model_factory, bank_factory, metrics)

        self._swap = HotSwap(load, target_of(settings), metrics)
        self._live = LiveEngine(self._swap)
        self._pusher = MetricsPusher(f"engine-{uuid.uuid4().hex[:12]}", metrics)

    def reconfigure(self, target: dict[str, str]) -> None:
        """Serve's hook for a new user_config; returns at once, since Serve sends no questions here until it has."""
        self._swap.switch(target)

    def check_health(self) -> None:
        """Serve's hook, asked every few seconds: a replica that has hung three times in a row is replaced."""
        if (trouble := self._live.trouble) is not None:
            if self._live.lost:
                _end_process(trouble)
            raise RuntimeError(trouble)

    async def ready(self) -> str | None:
        """None when questions can be answered here, else why not."""
        return await self._live.ready()

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer to a question, piece by piece."""
        said = False
        async for event in self._live.ask(ask):
            if not said and isinstance(event, Failure) and event.kind == "engine":
                await self._make_way()
            said = True
            yield event

    async def _make_way(self) -> None:
        """Before a refusal, so that the question goes to another replica.

        Serve's router chooses by the number of open questions, so a replica that refused at once would get all of them, and
        again when they are asked again. One that is lost ends its process, of which the router hears; one that may go on yet
        keeps the question for a while.
        """
        if self._live.lost:
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, _end_process, self._live.trouble)
        await asyncio.sleep(_REFUSAL_S)

    async def search(self, ask: Ask) -> HitList | Failure:
        """What the bank holds for a question."""
        return await self._live.search(ask)

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its latest documents; never waits behind the model."""
        return await self._live.overview(n, namespace)

    async def history(self, doc_id: str, namespace: str) -> Versions | Failure:
        """Every version of a document."""
        return await self._live.history(doc_id, namespace)

    async def loaded(self) -> ReplicaState:
        """What answers here now."""
        return self._live.loaded()


def _end_process(reason: str | None) -> None:
    """Ends this replica; Serve starts another one, and Ray ends what this one has started."""
    _log.error("this replica ends, since it can't answer any more: %s", reason)
    os._exit(1)


class Gateway:
    """The HTTP side: admission, OpenAI's schema, statistics, metrics of all processes, the page."""

    def __init__(self, settings: Settings, engine: Any) -> None:
        tombstones = Tombstones(settings.kafka)
        self._service = QueryService(settings, RemoteEngine(engine), Metrics(), HubSnapshots(), tombstones)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service)


def build_app(settings: Settings, model_factory: ModelFactory, bank_factory: BankFactory) -> Any:
    """The Serve application, not yet deployed; deployed again with another target it restarts nothing (decision 0022)."""
    options = settings.serve
    # the gateway bounds the questions, so the engine's own bound must leave room for looks at the bank
    inside = options.max_queued + options.max_batch * options.replicas + 64
    engine = serve.deployment(
        name="Engine",
        num_replicas=options.replicas,
        max_ongoing_requests=inside,
        max_constructor_retry_count=1,
        user_config=target_of(settings),
        health_check_period_s=_HEALTH_EVERY_S,
        ray_actor_options=_engine_actor(options),
    )(Engine)
    gateway = serve.deployment(
        name="Gateway",
        max_ongoing_requests=inside + 1024,
        graceful_shutdown_timeout_s=_GATEWAY_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Gateway))
    engine, gateway = (one.options(version=_VERSION, _internal=True) for one in (engine, gateway))
    return gateway.bind(settings, engine.bind(settings, model_factory, bank_factory))


def _engine_actor(options: ServeSettings) -> dict[str, Any]:
    """What Ray reserves for a replica, and the environment that it runs in."""
    actor: dict[str, Any] = {"num_gpus": options.gpus, "num_cpus": 0 if options.gpus else 1}
    if options.engine == "vllm" and options.vllm_python is not None:
        actor["runtime_env"] = {"py_executable": str(options.vllm_python.expanduser())}
    return actor


def start(
    settings: Settings, *, model_factory: ModelFactory = load_answering, bank_factory: BankFactory = open_bank
) -> str:
    """Deploys the service, waits until the LLM is loaded, and gives its URL.

    Raises SettingsError when strangers could ask, PortInUse when the port is taken, and what the engine failed with; Ray must
    be initialised.
    """
    host, port = settings.serve.host, settings.serve.port
    require_auth_beyond_loopback(settings.serve)
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
        trace = _why_not_deployed() or str(error)
        remove()
        raise error_of(trace, last_line(trace)) from None
    except BaseException:  # interrupted: a cluster must not go on with what nobody waits for
        remove()
        raise
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://{shown}:{port}"


def why_not_ready() -> str | None:
    """Why the running service can't answer yet, None when it can."""
    reason: str | None = serve.get_deployment_handle("Engine", APP_NAME).ready.remote().result(timeout_s=30.0)
    return reason


def remove(within_s: float = 0.0) -> None:
    """Takes this application down after its open requests, and waits `within_s` for that; Serve and other applications stay."""
    if not ray.is_initialized():
        return
    end = time.monotonic() + within_s
    with suppress(RayError, RayServeException, RuntimeError):
        serve.delete(APP_NAME, _blocking=False)
        while time.monotonic() < end and APP_NAME in serve.status().applications:
            time.sleep(0.05)


def stop() -> None:
    """Takes Serve down and frees its port; harmless when it is not running."""
    if ray.is_initialized():
        serve.shutdown()


def _why_not_deployed() -> str | None:
    """The trace of what a deployment's constructor raised; Serve's own error only names the deployment."""
    application = serve.status().applications.get(APP_NAME)
    messages = [one.message for one in application.deployments.values()] if application else []
    return next((message for message in messages if "Traceback" in message), None)
