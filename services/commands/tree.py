"""The commands of `cmt`. What a command needs is imported when it runs, so that help and refusals come at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.commands import bank, dlq, evaluation, feed, fit, ingest, train, train_looks
from services.commands.options import Config, progress, read_settings
from services.commands.query import register
from services.commands.serve import serve_app
from services.terminal import echo

__all__ = ["app"]

app = typer.Typer(
    name="cmt",
    help="A live memory of the news for a frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(feed.app, name="feed")
app.add_typer(ingest.app, name="ingest")
app.add_typer(dlq.app, name="dlq")
app.command("fit")(fit.fit)
app.command("train")(train.train)
app.command("train-looks")(train_looks.train_looks)
app.add_typer(bank.app, name="bank")
app.add_typer(config_app, name="config")
app.add_typer(evaluation.app, name="eval")

Port = Annotated[int | None, typer.Option(help="Port of the query service.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        echo(f"cmt {version('cmt-memory')}")
        raise typer.Exit


@app.callback()
def cmt(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """A live memory of the news for a frozen language model."""


@app.command()
def demo(
    config: Config = None,
    port: Port = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Articles a second.")] = 6.0,
    once: Annotated[bool, typer.Option("--once", envvar="DEMO_ONCE", help="End after the table.")] = False,
    news: Annotated[Path | None, typer.Option(help="Folder with feeds and questions.jsonl.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
    every_row: Annotated[bool, typer.Option("--all", help="Print every question, not ten of them.")] = False,
) -> None:
    """Ask, play the news through Kafka, ask again: the whole system on this machine."""
    settings = read_settings(config, serve__port=port)
    progress.print("starting the demo")
    from services.commands.demo import run_demo

    sys.exit(run_demo(settings, news=news, rate_per_s=rate, once=once, report=report, every_row=every_row))


@config_app.command("show")
def config_show(
    config: Config = None, as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False
) -> None:
    """The effective settings, secrets masked."""
    import yaml

    effective = read_settings(config).masked()
    echo(json.dumps(effective, indent=2) if as_json else yaml.safe_dump(effective, sort_keys=False).rstrip())


register(app, read_settings)
app.add_typer(serve_app(read_settings, progress), name="serve")
