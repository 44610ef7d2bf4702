"""What `cmt ingest` does: broker, Ray, the actors, a status line, and a graceful end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from services.ingest.drain import noted_ingest
from services.ingest.pipeline import IngestHandle, start_ingest
from services.ingest.ports import ModelFactory
from services.models import fetch_models, load_cmt
from services.runtime import interruptible, ray_session
from services.settings import Settings
from services.stream.broker import open_broker
from services.stream.rewind import rewind
from services.terminal import Terminal

__all__ = ["Backfill", "run_ingest"]

_STATUS_EVERY_S = 10.0
_CATCH_UP_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Backfill:
    """Read the topic again, from `since` (aware) on, or from its beginning."""

    since: datetime | None


def run_ingest(
    settings: Settings,
    *,
    until_caught_up: bool,
    console: Terminal,
    backfill: Backfill | None = None,
    model_factory: ModelFactory | None = None,
) -> None:
    """Runs until Ctrl-C, SIGTERM, or (when asked) until every record is in the bank; raises what an actor failed with.

    The first signal stops polling, finishes what was begun and commits it, within `stop_within_s`; a second one ends the
    process at once. Either way the next start goes on from what is committed. `model_factory` None is the real model.
    """
    if model_factory is None:
        fetch_models(settings.model, console)

    with (
        interruptible() as wait,
        noted_ingest(settings),
        open_broker(settings.kafka) as bootstrap,
        ray_session(settings.ray),
    ):

        def move_offsets() -> None:
            assert backfill is not None
            moved = rewind(settings.kafka, bootstrap, backfill.since)
            console.print(f"reading again from offsets {moved}")

        handle = start_ingest(
            settings,
            bootstrap,
            model_factory=model_factory or load_cmt,
            rewind=move_offsets if backfill else None,
        )
        try:
            console.print(f"ingesting {settings.kafka.topic} at {bootstrap} into {settings.bank.uri}")
            _run(handle, wait, until_caught_up, console)
        finally:
            console.print("stopping: flushing what is in flight")
            handle.stop(settings.ingest.stop_within_s)


def _run(handle: IngestHandle, wait: Callable[[float | None], bool], until_caught_up: bool, console: Terminal) -> None:
    if until_caught_up:
        handle.wait_until_caught_up(_CATCH_UP_S, pause=wait)
        return
    while not wait(_STATUS_EVERY_S):
        handle.raise_if_failed()
        console.print(str(handle.status()))
