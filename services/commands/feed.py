"""`cmt feed`: documents into the Kafka topic."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from services.commands.options import Bootstrap, Config, Topic, progress, read_settings
from services.errors import SettingsError
from services.terminal import echo

__all__ = ["app"]

app = typer.Typer(help="Put documents into the Kafka topic.", no_args_is_help=True)


@app.command("play")
def feed_play(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Files, folders or URLs: RSS, Atom, JSON Feed, JSONL.")
    ] = None,
    sample_news: Annotated[
        bool, typer.Option("--sample-news", help="The invented articles that come with the program.")
    ] = False,
    config: Config = None,
    topic: Topic = None,
    bootstrap_servers: Bootstrap = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Documents a second; default as fast as possible.")
    ] = None,
    own_times: Annotated[
        bool, typer.Option("--own-times", help="In the order of their times and with the pauses between.")
    ] = False,
    speed: Annotated[float, typer.Option(min=0.001, help="With --own-times: so many times as fast.")] = 1.0,
) -> None:
    """Send every item of the sources into the topic, once."""
    if not sources and not sample_news:
        raise SettingsError("name files, folders or URLs to play, or --sample-news")
    settings = read_settings(config, kafka__topic=topic, kafka__bootstrap_servers=bootstrap_servers)
    from services.feed.run import play_once
    from services.sample_news import sample_locations

    locations = [*(sample_locations() if sample_news else []), *(sources or [])]

    report = play_once(settings, locations, rate, progress, speed if own_times else None)
    echo(
        f"sent {report.sent} documents and {report.deleted} deletions to {settings.kafka.topic}; "
        f"{report.skipped} items without text, {report.merged} the same as another, "
        f"{report.unreadable} feeds or lines unreadable"
        + (f", {report.refused} refused by Kafka" if report.refused else "")
    )
    if report.unreadable or report.refused:
        sys.exit(5)


@app.command("poll")
def feed_poll(
    urls: Annotated[list[str], typer.Argument(help="Feed URLs.")],
    config: Config = None,
    topic: Topic = None,
    bootstrap_servers: Bootstrap = None,
    every: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds between two looks at a feed; default feed.interval_s.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look at every feed that is due once, then end.")] = False,
) -> None:
    """Look at the feeds again and again; new and edited items go into the topic, until Ctrl-C."""
    settings = read_settings(
        config, kafka__topic=topic, kafka__bootstrap_servers=bootstrap_servers, feed__interval_s=every
    )
    from services.feed.run import poll_forever

    if poll_forever(settings, urls, progress, once=once) and once:
        sys.exit(5)
