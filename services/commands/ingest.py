"""`cmt ingest`: the stream into the bank, and how far it has come."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from services.commands.options import Bank, Bootstrap, Config, RayAddress, Topic, progress, read_settings
from services.errors import SettingsError
from services.terminal import echo

__all__ = ["app"]

app = typer.Typer(
    help="Consume the topic, compress every document, keep it in the bank, until Ctrl-C.", invoke_without_command=True
)


@app.callback()
def ingest(
    context: typer.Context,
    config: Config = None,
    topic: Topic = None,
    bootstrap_servers: Bootstrap = None,
    bank: Bank = None,
    ray: RayAddress = None,
    until_caught_up: Annotated[bool, typer.Option(help="End when every record of the topic is in the bank.")] = False,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Read the whole topic again; what the bank has stays as it is.")
    ] = False,
    from_time: Annotated[
        str | None, typer.Option(help="Read again from this time on: 2026-01-31T12:00:00Z, or a date.")
    ] = None,
) -> None:
    """Consume the topic, compress every document, keep it in the bank, until Ctrl-C (a second one ends at once)."""
    if context.invoked_subcommand is not None:
        return
    settings = read_settings(
        config, kafka__topic=topic, kafka__bootstrap_servers=bootstrap_servers, bank__uri=bank, ray__address=ray
    )
    if from_beginning and from_time:
        raise SettingsError("--from-beginning and --from-time exclude each other")
    progress.print(f"starting ingest of {settings.kafka.topic} into {settings.bank.uri}")
    from services.ingest.run import Backfill, run_ingest

    backfill = Backfill(_moment(from_time) if from_time else None) if from_beginning or from_time else None
    run_ingest(settings, until_caught_up=until_caught_up, console=progress, backfill=backfill)


@app.command("status")
def ingest_status(
    config: Config = None,
    topic: Topic = None,
    bootstrap_servers: Bootstrap = None,
    bank: Bank = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Offsets, lag and rate, from Kafka and the bank alone: right also when ingest does not run."""
    settings = read_settings(config, kafka__topic=topic, kafka__bootstrap_servers=bootstrap_servers, bank__uri=bank)
    from services.ingest.progress import read_progress, table

    found = read_progress(settings)
    echo(json.dumps(dataclasses.asdict(found)) if as_json else table(found))


@app.command("drain")
def ingest_drain(config: Config = None, topic: Topic = None, bank: Bank = None) -> None:
    """End the ingest that runs on this machine in order, and wait until it has (a pod's preStop hook)."""
    settings = read_settings(config, kafka__topic=topic, bank__uri=bank)
    from services.ingest.drain import drain

    echo("drained" if drain(settings) else "no ingest runs here")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"--from-time: {text!r} is no time such as 2026-01-31T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
