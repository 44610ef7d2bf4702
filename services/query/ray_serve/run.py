"""What `cmt serve` does: a Ray session, the app, and a wait for Ctrl-C."""

from __future__ import annotations

import os

from services.interrupts import interruptible
from services.model_check import check_checkpoint
from services.models import fetch_models
from services.query.gateway.addresses import refuse_taken_port, require_auth_beyond_loopback
from services.query.ray_serve.session_note import forget_session, remember_session
from services.runtime import ray_session
from services.settings import Settings
from services.terminal import Terminal

__all__ = ["run_serve"]

_OPEN_REQUESTS_S = 1.0  # how long those that are being answered may take when the service is stopped
_STOP_S = 2.5


def run_serve(settings: Settings, console: Terminal) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Raises SettingsError, PortInUse, ServiceError or CoreError when it can't start.
    """
    require_auth_beyond_loopback(settings.serve)  # before anything slow
    refuse_taken_port(settings.serve.host, settings.serve.port)
    fetch_models(settings.model, console)
    check_checkpoint(settings.model)
    console.print("starting Ray")
    from services.query.ray_serve.proxy import proxy_environment

    proxy_environment(os.environ)
    with ray_session(settings.ray):
        import ray

        from services.query.ray_serve import app  # with Ray Serve, seconds of imports

        console.print("loading the LLM")
        url = app.start(settings)
        remember_session(settings, ray.get_runtime_context().gcs_address)
        try:
            if (reason := app.why_not_ready()) is not None:
                console.print(f"warning: questions are refused (503) for now: {reason}", soft_wrap=True)
            with interruptible(_STOP_S) as wait:
                console.print(f"serving {url} from bank {settings.bank.uri}; Ctrl-C ends it")
                wait(None)
            console.print("stopping")
        finally:
            forget_session(settings)
            app.remove(_OPEN_REQUESTS_S)
