"""`cmt ask`, `cmt chat` and `cmt key`: what a person does with a running query service."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_core.generation.query import Mode
from services.errors import ServiceError, SettingsError
from services.terminal import Terminal, echo, echo_json, on_one_line

if TYPE_CHECKING:
    from services.settings import Settings

__all__ = ["register"]

Load = Callable[..., "Settings"]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file; default ./cmt.yaml where there is one.")]
Url = Annotated[str | None, typer.Option(help="The query service; default from the settings.")]
AsOf = Annotated[str | None, typer.Option("--as-of", help='Ask the past: "2 days ago", "yesterday", 2026-01-31T08:00.')]
TopK = Annotated[int | None, typer.Option(min=1, max=64, help="Memories to read.")]
Namespace = Annotated[str | None, typer.Option(help="Namespace of the documents.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME=VALUE",
        help="Only documents whose metadata says so; may be given again: another value of a name will do, too.",
    ),
]
AskMode = Annotated[Mode, typer.Option(help="What the model reads.")]

_NEW = "/new"
_console = Terminal(stderr=True)


def register(app: typer.Typer, load: Load) -> None:
    """Adds the commands to `app`; `load(config)` gives the settings."""

    @app.command()
    def ask(
        question: Annotated[str | None, typer.Argument(help="The question; - or none reads it from stdin.")] = None,
        config: Config = None,
        url: Url = None,
        mode: AskMode = "auto",
        as_of: AsOf = None,
        top_k: TopK = None,
        namespace: Namespace = None,
        metadata: Metadata = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
    ) -> None:
        """Ask the running query service one question; the answer is printed as it is written."""
        settings = load(config)
        from services.commands.client import service_url

        asked = _question(question)
        body = _body([{"role": "user", "content": asked}], mode, as_of, top_k, namespace, metadata)
        answer = _print_answer(url or service_url(settings), settings, body, quiet=as_json)
        if as_json:
            echo_json(answer, indent=2)

    @app.command()
    def chat(
        config: Config = None,
        url: Url = None,
        mode: AskMode = "auto",
        as_of: AsOf = None,
        top_k: TopK = None,
        namespace: Namespace = None,
        metadata: Metadata = None,
    ) -> None:
        """Talk with the running query service; a question may build on the ones before. An empty line or Ctrl-D ends it.

        On a terminal the arrow keys bring back earlier questions, and /new begins a new conversation.
        """
        settings = load(config)
        from services.commands.chat_line import ChatLine
        from services.commands.client import service_url

        address, line = url or service_url(settings), ChatLine()
        if line.by_a_person:
            _greet(address, settings, namespace)
        messages: list[dict[str, str]] = []
        while asked := line.next():
            if asked == _NEW and line.by_a_person:
                messages.clear()
                continue
            said = [*messages, {"role": "user", "content": asked}]
            try:
                answer = _print_answer(address, settings, _body(said, mode, as_of, top_k, namespace, metadata))
            except ServiceError as error:
                if not line.by_a_person:
                    raise
                echo(f"cmt: {error}", err=True)  # a person may ask again
                continue
            messages = [*said, {"role": "assistant", "content": answer["answer"]}]

    @app.command()
    def key(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
        """Make an API key: the key itself goes to stdout, once; the line for the settings, with its hash, to stderr."""
        from services.query.gateway.keys import hash_of, new_key

        made = new_key()
        echo(made)
        line = f"serve: {{api_keys: {{{json.dumps(name)}: {hash_of(made)}}}}}"
        _console.print(line, soft_wrap=True)


def _question(given: str | None) -> str:
    if given not in (None, "-"):
        return given or ""
    if given is None and sys.stdin.isatty():
        raise SettingsError("what is the question? give it as an argument, or on stdin")
    return sys.stdin.read().strip()


def _greet(url: str, settings: Settings, namespace: str | None) -> None:
    """What one talks with, and how it ends. Raises ServiceError when nothing answers there."""
    from services.commands.client import service_stats

    stats = service_stats(url, settings, namespace or "default")
    held = stats["documents"]
    echo(f"The news memory at {url} holds {held} {'article' if held == 1 else 'articles'}.", err=True)
    for newest in stats["latest"][:1]:
        echo(on_one_line(f"Latest: {newest['title'] or newest['doc_id']}"), err=True)
    echo(f"Ask, and ask on. {_NEW} begins a new conversation; Ctrl-D or an empty line ends.", err=True)


def _body(
    messages: list[dict[str, str]],
    mode: Mode,
    as_of: str | None,
    top_k: int | None,
    namespace: str | None,
    metadata: list[str] | None,
) -> dict[str, Any]:
    cmt: dict[str, Any] = {"mode": mode}
    if as_of is not None:
        from services.commands.moments import moment_of

        cmt["as_of"] = moment_of(as_of, datetime.now().astimezone()).isoformat()
    if top_k is not None:
        cmt["top_k"] = top_k
    if namespace is not None:
        cmt["namespace"] = namespace
    if metadata:
        cmt["filters"] = {"metadata": _by_name(metadata)}
    return {"model": "cmt", "messages": messages, "cmt": cmt}


def _by_name(given: list[str]) -> dict[str, list[str]]:
    """The values of each NAME=VALUE by their name."""
    wanted: dict[str, list[str]] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not (name and sign):
            raise SettingsError(f"--metadata {one!r}: give NAME=VALUE, such as section=local")
        wanted.setdefault(name, []).append(value)
    return wanted


def _print_answer(url: str, settings: Settings, body: dict[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """Prints an answer as it comes, then its sources; gives answer, sources and cmt."""
    from services.commands.client import stream_answer

    text, last = "", dict[str, Any]()
    for chunk in stream_answer(url, settings, body):
        piece = chunk["choices"][0]["delta"].get("content") or "" if chunk["choices"] else ""
        text += piece
        if piece and not quiet:
            echo(piece, nl=False)
            sys.stdout.flush()
        last = chunk if "sources" in chunk else last
    if not quiet:
        echo()
        for source in last.get("sources", []):
            echo(_source_line(source))
        for note in last.get("cmt", {}).get("notes", []):
            echo(f"  ({on_one_line(note)})")
    return {"answer": text, "sources": last.get("sources", []), "cmt": last.get("cmt", {})}


def _source_line(source: dict[str, Any]) -> str:
    weight = "" if source["weight"] is None else f"{source['weight']:4.0%} "
    return on_one_line(f"  {weight}{source['title'] or source['doc_id']}  {source['url'] or ''}".rstrip())
