"""The `cmt` command: every part of the system from a terminal.

Results go to stdout, progress and errors to stderr. An error is one line and an exit code (services/errors.py lists them).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cmt_core.errors import ConfigError, CoreError
from services.commands import bank, dlq, evaluation, feed, ingest, train
from services.commands.options import Config, progress, read_settings
from services.errors import ServiceError
from services.query.commands import register
from services.query.serve_commands import serve_app
from services.terminal import echo, on_one_line

__all__ = ["app", "main"]

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
app.command("train")(train.train)
app.add_typer(bank.app, name="bank")
app.add_typer(config_app, name="config")
app.add_typer(evaluation.app, name="eval")

Port = Annotated[int | None, typer.Option(help="Port of the query service.")]


def main() -> None:
    """Entry point: runs the command and turns our errors into one line and an exit code."""
    try:
        app()
    except ServiceError as error:
        _fail(str(error), error.exit_code)
    except CoreError as error:
        _fail(str(error), 2 if isinstance(error, ConfigError) else 7)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)


@app.command()
def demo(
    config: Config = None,
    port: Port = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Articles a second.")] = 6.0,
    once: Annotated[bool, typer.Option("--once", envvar="DEMO_ONCE", help="End after the table.")] = False,
    news: Annotated[Path | None, typer.Option(help="Folder with feeds and questions.jsonl.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
) -> None:
    """Ask, play the news through Kafka, ask again: the whole system on this machine."""
    from services.demo import run_demo

    settings = read_settings(config, serve__port=port)
    sys.exit(run_demo(settings, news=news, rate_per_s=rate, once=once, report=report))


@config_app.command("show")
def config_show(
    config: Config = None, as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False
) -> None:
    """The effective settings, secrets masked."""
    effective = read_settings(config).masked()
    echo(json.dumps(effective, indent=2) if as_json else yaml.safe_dump(effective, sort_keys=False).rstrip())


register(app, read_settings)
app.add_typer(serve_app(read_settings, progress), name="serve")


def _fail(line: str, code: int) -> None:
    progress.print(on_one_line(f"cmt: {line}"), style="red", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
