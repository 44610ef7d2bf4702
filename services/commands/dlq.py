"""`cmt dlq`: the records that could not be read."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.commands.options import Bootstrap, Config, Topic, progress, read_settings
from services.errors import RecordError, SettingsError
from services.terminal import echo, echo_json, on_one_line

if TYPE_CHECKING:
    from services.stream.dead_letter_reader import DeadLetter

__all__ = ["app"]

app = typer.Typer(help="Look at records that could not be read, and send them again.", no_args_is_help=True)
Reason = Annotated[str | None, typer.Option(help="Only letters of this reason: not_json, schema, too_large, ...")]
_SHOWN_CHARS = 80


@app.command("list")
def dlq_list(
    config: Config = None,
    topic: Topic = None,
    bootstrap_servers: Bootstrap = None,
    reason: Reason = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Print so many at most, the oldest first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Every dead letter: its place, when and why it came, where the record stood, and its key."""
    settings, bootstrap = _broker(config, topic, bootstrap_servers)
    from services.stream.dead_letter_reader import read_letters

    count = 0
    for letter in read_letters(settings.kafka, bootstrap):
        if reason not in (None, letter.reason):
            continue
        if as_json:
            echo_json(_facts(letter))
        else:
            echo(_line(letter))
        count += 1
        if count == limit:
            break
    progress.print(f"{count} dead letters in {settings.kafka.dlq_topic}")


@app.command("show")
def dlq_show(
    place: Annotated[str, typer.Argument(help="PARTITION:OFFSET as `cmt dlq list` prints it.")],
    config: Config = None,
    topic: Topic = None,
    bootstrap_servers: Bootstrap = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Only the value; into a file or a pipe its bytes untouched.")
    ] = False,
) -> None:
    """One dead letter with all that is known about it."""
    settings, bootstrap = _broker(config, topic, bootstrap_servers)
    from services.stream.dead_letter_reader import read_letters

    found = next((one for one in read_letters(settings.kafka, bootstrap) if one.place == place), None)
    if found is None:
        raise RecordError("no_letter", f"{settings.kafka.dlq_topic} has no dead letter at {place}")
    if raw:
        _write_raw(found.value or b"")
        return
    echo_json(_facts(found) | {"value": _text(found.value)}, indent=2)


@app.command("replay")
def dlq_replay(
    places: Annotated[list[str] | None, typer.Argument(help="PARTITION:OFFSET of single letters.")] = None,
    config: Config = None,
    topic: Topic = None,
    bootstrap_servers: Bootstrap = None,
    reason: Reason = None,
    everything: Annotated[bool, typer.Option("--all", help="All that `replay --all` has not sent before.")] = False,
) -> None:
    """Send dead letters into the topic again. A newer version of a document that came meanwhile stays."""
    chosen = bool(places) + bool(reason) + everything
    if chosen != 1:
        raise SettingsError("choose the letters: places, or --reason, or --all")
    settings, bootstrap = _broker(config, topic, bootstrap_servers)
    from services.stream.replay import replay

    wanted = set(places or ())
    choose = None if everything else lambda letter: letter.place in wanted if wanted else letter.reason == reason
    report = replay(settings.kafka, bootstrap, choose)
    echo(f"sent {report.sent} again to {settings.kafka.topic}; {report.earlier} had been sent before")
    if report.impossible:
        raise RecordError(
            "no_record",
            f"{report.impossible} hold no record that could be sent (undecodable, too large, neither key nor value): "
            "`cmt ingest --from-time` reads such places of the topic again",
        )
    if wanted and report.sent < len(wanted):
        raise RecordError("no_letter", f"{len(wanted) - report.sent} of {len(wanted)} places hold no dead letter")


def _broker(config: Any, topic: str | None, bootstrap_servers: str | None) -> tuple[Any, str]:
    from services.stream.broker import running_broker

    settings = read_settings(config, kafka__topic=topic, kafka__bootstrap_servers=bootstrap_servers)
    return settings, running_broker(settings.kafka)


def _write_raw(value: bytes) -> None:
    """The bytes as they are into a file or a pipe; a terminal would obey them."""
    if _to_a_terminal():
        echo(value.decode(errors="backslashreplace"))
        return
    sys.stdout.buffer.write(value)
    sys.stdout.buffer.flush()


def _to_a_terminal() -> bool:
    return sys.stdout.isatty()


def _line(letter: DeadLetter) -> str:
    origin = f"{letter.topic}[{letter.partition}]@{letter.offset}"
    key = _text(letter.key)["text"] if letter.key is not None else "-"
    line = f"{letter.place:10} {letter.time:24} {letter.reason:12} {origin:24} {key:20} {letter.error}"
    return on_one_line(line)[: 120 + _SHOWN_CHARS]


def _facts(letter: DeadLetter) -> dict[str, Any]:
    return {
        "place": letter.place,
        "time": letter.time,
        "reason": letter.reason,
        "error": letter.error,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms,
        "left_out": letter.left_out,
        "key": _text(letter.key),
        "bytes": len(letter.value or b""),
        "headers": {name: value.decode(errors="backslashreplace") for name, value in letter.headers},
    }


def _text(data: bytes | None) -> dict[str, str]:
    """Text where the bytes are UTF-8, else Base64, so that nothing is lost in print."""
    if data is None:
        return {"text": ""}
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"text": data.decode(errors="backslashreplace"), "base64": base64.b64encode(data).decode()}
