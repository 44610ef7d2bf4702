"""The one way to a terminal: what comes from documents, records, feeds and errors can't move the cursor, colour or rename it.

Control characters (C0, C1, DEL), bidirectional overrides, line separators and invisible tags are shown as escapes, such as
`\\x1b`. Lines and tabs stay. Every command prints by `echo`, `echo_json` or a `Terminal`; the linter forbids other ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

__all__ = ["Terminal", "echo", "echo_json", "on_one_line", "printable"]

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # separators of lines, bidirectional overrides and isolates
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # halves of surrogates, annotations, tags
)


def printable(text: str) -> str:
    """A text with what a terminal would obey as escapes."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_one_line(text: str) -> str:
    """A printable text without line breaks."""
    return printable(" ".join(text.split("\n")))


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Prints a text to stdout, or to stderr."""
    typer.echo(printable(text), nl=nl, err=err)


def echo_json(value: Any, *, indent: int | None = None) -> None:
    """Prints a value as JSON that reads back as it was, in its own letters as far as a terminal allows."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    typer.echo(_UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text))


class Terminal(Console):
    """Rich's console for texts of others: no control characters, and square brackets are no markup."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Rich's own segments, their texts printable; its control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
