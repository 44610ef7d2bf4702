"""What `cmt ingest` does: broker, Ray, the actors, a status line, and a graceful end."""

from __future__ import annotations

from rich.console import Console

from services.ingest.pipeline import start_ingest
from services.models import fetch_models
from services.runtime import interruptible, ray_session
from services.settings import Settings
from services.stream.broker import open_broker

__all__ = ["run_ingest"]

_STATUS_EVERY_S = 10.0
_STOP_WITHIN_S = 30.0
_CATCH_UP_S = 24 * 3600.0


def run_ingest(settings: Settings, *, until_caught_up: bool, console: Console) -> None:
    """Runs until Ctrl-C, SIGTERM, or (when asked) until every record is in the bank; raises what an actor failed with."""
    fetch_models(settings.model, console)
    with interruptible() as wait, open_broker(settings.kafka) as bootstrap, ray_session(settings.ray):
        handle = start_ingest(settings, bootstrap)
        try:
            console.print(f"ingesting {settings.kafka.topic} at {bootstrap} into {settings.bank.uri}", highlight=False)
            if until_caught_up:
                handle.wait_until_caught_up(_CATCH_UP_S)
            else:
                while not wait(_STATUS_EVERY_S):
                    handle.raise_if_failed()
                    console.print(str(handle.status()), highlight=False)
        finally:
            console.print("stopping: flushing what is in flight", highlight=False)
            handle.stop(_STOP_WITHIN_S)
