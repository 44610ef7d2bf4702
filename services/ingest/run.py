"""What `cmt ingest` does: broker, Ray, the actors, a status line, and a graceful end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from services.bank.lock import check_place
from services.ingest.drain import noted_ingest
from services.ingest.ports import ModelFactory
from services.interrupts import interruptible
from services.model_check import check_checkpoint
from services.models import fetch_models, load_cmt
from services.runtime import ray_session
from services.settings import Settings
from services.stream.broker import open_broker
from services.stream.rewind import rewind
from services.stream.topics import ensure_topics
from services.terminal import Terminal

if TYPE_CHECKING:
    from services.ingest.pipeline import IngestHandle

__all__ = ["Backfill", "run_ingest"]

_STATUS_EVERY_S = 10.0
_CATCH_UP_S = 24 * 3600.0
_END_S = 0.8  # for the actors' and Ray's ends, after the graceful stop


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

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    check_place(settings.bank)
    if model_factory is None:
        fetch_models(settings.model, console)
        check_checkpoint(settings.model)
    with ExitStack() as stack:
        stack.enter_context(noted_ingest(settings))
        bootstrap = stack.enter_context(open_broker(settings.kafka))
        ensure_topics(settings.kafka, bootstrap)
        say(f"Kafka is at {bootstrap}; starting Ray")
        stack.enter_context(ray_session(settings.ray))
        from services.ingest.pipeline import start_ingest
        from services.ingest.progress import unread

        say("loading the LLM and opening the bank")

        def move_offsets() -> None:
            assert backfill is not None
            say(f"reading again from offsets {rewind(settings.kafka, bootstrap, backfill.since)}")

        handle = start_ingest(
            settings,
            bootstrap,
            model_factory=model_factory or load_cmt,
            rewind=move_offsets if backfill else None,
        )
        stop_s = settings.ingest.stop_within_s
        with _stopped(handle, stop_s, say), interruptible(stop_s + _END_S) as wait:
            say(f"ingesting {settings.kafka.topic} at {bootstrap} into {settings.bank.uri}")
            _run(handle, wait, until_caught_up, console)
        if not settings.kafka.bootstrap_servers and (lost := unread(settings.kafka, bootstrap)):
            say(lost)


@contextmanager
def _stopped(handle: IngestHandle, within_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Stops the actors behind the block: in order, or at once where a signal came before anybody was to finish."""
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if interrupted:
            handle.kill()
        else:
            say("stopping: flushing what is in flight")
            handle.stop(within_s)


def _run(handle: IngestHandle, wait: Callable[[float | None], bool], until_caught_up: bool, console: Terminal) -> None:
    if until_caught_up:
        handle.wait_until_caught_up(_CATCH_UP_S, pause=wait)
        return
    while not wait(_STATUS_EVERY_S):
        handle.raise_if_failed()
        console.print(str(handle.status()))
