"""What `cmt serve reload` does: a new Serve `user_config` for the running application, and a wait until all replicas have it."""

from __future__ import annotations

import time
from typing import Any

from ray import serve

from services.errors import ServiceError
from services.models import fetch_models, load_answering
from services.query.engine.hot_swap import Target, revision_of, target_of, with_target
from services.query.engine.messages import ReplicaState
from services.query.engine.ports import BankFactory, ModelFactory
from services.query.ray_serve import app
from services.runtime import ray_session
from services.settings import Settings
from services.terminal import Terminal

__all__ = ["reload_service", "run_reload"]

_WITHIN_S = 300.0
_LOOK_S = 0.2


def run_reload(settings: Settings, address: str, console: Terminal) -> None:
    """Joins the Ray at `address` and switches its service. Raises ServiceError when there is none, or it can't switch."""
    fetch_models(settings.model, console)
    with ray_session(settings.ray.model_copy(update={"address": address})):
        loaded = reload_service(settings)
    console.print(f"serving checkpoint {loaded.model_id} from bank {settings.bank.uri}")


def reload_service(
    settings: Settings, *, model_factory: ModelFactory = load_answering, bank_factory: BankFactory = app.open_bank
) -> ReplicaState:
    """Deploys the same application with another user_config, which Serve hands to the running replicas.

    Waits until each of them answers from the new checkpoint and bank; Ray must be initialised. Raises ServiceError when
    no service runs there, or when the new target can't be loaded: then the old one goes on.
    """
    if app.APP_NAME not in serve.status().applications:
        raise ServiceError("no query service runs there: start one with `cmt serve`")
    handle = serve.get_deployment_handle("Engine", app.APP_NAME)
    before = _loaded(handle)

    def deploy(target: Target) -> None:
        application = app.build_app(with_target(settings, target), model_factory, bank_factory)
        serve.run(application, name=app.APP_NAME, route_prefix="/")

    deploy(target_of(settings))
    try:
        return _wait(handle, revision_of(target_of(settings)), settings.serve.replicas)
    except ServiceError:
        deploy(before.target)  # a replica that is started tomorrow must not try the broken one
        raise


def _wait(handle: Any, wanted: str, replicas: int) -> ReplicaState:
    """Asks replicas, whichever Serve picks, until all of them have said that they answer from the wanted target."""
    done: dict[str, ReplicaState] = {}
    end = time.monotonic() + _WITHIN_S
    while len(done) < replicas:
        if time.monotonic() > end:
            raise ServiceError(f"only {len(done)} of {replicas} replicas switched in {_WITHIN_S:g} s")
        one = _loaded(handle)
        if one.revision == wanted:
            done[one.replica] = one
        elif one.error is not None:
            raise ServiceError(f"the service goes on as it was: {one.error}")
        else:
            time.sleep(_LOOK_S)
    return next(iter(done.values()))


def _loaded(handle: Any) -> ReplicaState:
    one: ReplicaState = handle.loaded.remote().result(timeout_s=30.0)
    return one
