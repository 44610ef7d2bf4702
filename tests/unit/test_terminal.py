"""Nothing in a document, a record, a feed or an error is obeyed by a terminal."""

from __future__ import annotations

import io
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from services.commands import dlq
from services.commands.demo_report import DemoReport, QuestionResult, print_report
from services.commands.errors import one_line_errors
from services.commands.query import _source_line
from services.errors import FeedError
from services.logs import set_up_logging
from services.settings import load_settings
from services.stream import dead_letter_reader
from services.stream.dead_letter_reader import DeadLetter
from services.terminal import Terminal, echo, echo_json, on_one_line, printable

HOSTILE = {
    "colour": "\x1b[31mred",
    "window title": "\x1b]0;title\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\bank\x1b]8;;\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "C1 control sequence": "\x9b31mred\x9d0;title\x9c",
    "carriage return": "harmless\rwiped",
    "backspaces": "rm\x08\x08ls",
    "override": "annex\u202egnp.exe",
    "isolate": "a\u2066b\u2069c",
    "line separator": "one\u2028two",
    "tags": "a\U000e0041\U000e007fb",
    "half a surrogate": "a\ud83db",
    "DEL and NUL": "a\x7f\x00b",
}
OBEYED = [
    *map(chr, (*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0))),
    *"\u2028\u202a\u202b\u202c\u202d\u202e\u2066\u2069",
]


def is_safe(text: str) -> bool:
    return not set(OBEYED) & set(text) and not any(
        0xD800 <= ord(char) < 0xE000 or ord(char) >> 8 == 0xE00 for char in text
    )


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_a_terminal_obeys_is_shown_as_an_escape(text: str) -> None:
    assert is_safe(printable(text))
    letters = "".join(char for char in text if is_safe(char))
    assert re.sub(r"\\(r|x..|u....|U........)", "", printable(text)) == letters


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_printable_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert is_safe(shown)
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text", ["Café, 霧島市で橋。 سلام\u200c \u200fשלום 👩‍👧 [bold]no markup[/]", "two\nlines\tand a tab"]
)
def test_text_without_controls_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    echo(text)
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_json_is_safe_and_reads_back_as_it_was(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({text: [text, "Café 橋"]}, indent=2)
    shown = capsys.readouterr().out
    assert is_safe(shown)
    assert "Café 橋" in shown
    assert json.loads(shown) == {text: [text, "Café 橋"]}


def shown(*things: Any, **options: Any) -> str:
    file = io.StringIO()
    Terminal(file=file, width=200, **options).print(*things)
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_tables_lines_and_styled_text_of_a_terminal_are_safe(text: str) -> None:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(Text.assemble(("+ ", "green"), text))
    for thing in (text, table, Text(text)):
        assert is_safe(shown(thing).replace("\n", ""))


def test_styles_of_the_program_itself_are_kept_and_brackets_are_no_markup() -> None:
    made = shown(Text.assemble(("+ ", "green"), "[red]a[/] \x1b[31mred"), force_terminal=True, color_system="standard")
    assert made.startswith("\x1b[32m+ \x1b[0m[red]a[/] \\x1b[31mred")


def test_a_progress_bar_still_moves_on_a_terminal() -> None:
    file = io.StringIO()
    with Progress(TextColumn("{task.description}"), console=Terminal(file=file, force_terminal=True)) as bar:
        bar.update(bar.add_task("sending"), advance=1)
        bar.refresh()
    assert "\x1b[" in file.getvalue()
    assert "\\x1b" not in file.getvalue()


@pytest.fixture
def letter() -> DeadLetter:
    hostile = "\x1b[31mred\x1b]0;title\x07\nsecond line\u202e"
    return DeadLetter(
        key=hostile.encode(),
        value=hostile.encode() + b"\x9b\xff",
        headers=((hostile, hostile.encode()),),
        timestamp_ms=0,
        reason="not_json",
        error=f"can't be read: {hostile}",
        topic="documents",
        partition=0,
        offset=7,
        epoch=0,
        first_place=None,
        time="2026-01-01T00:00:00Z",
        letter_partition=0,
        letter_offset=1,
    )


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "0:1"], ["show", "0:1", "--raw"]])
def test_a_dead_letter_is_shown_without_control_characters(
    letter: DeadLetter, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, which `--raw` spares too."""
    monkeypatch.setattr(dlq, "_broker", lambda *given: (load_settings(), "broker:9092"))
    monkeypatch.setattr(dead_letter_reader, "read_letters", lambda *given: iter([letter]))
    monkeypatch.setattr(dlq, "_to_a_terminal", lambda: True)
    result = CliRunner().invoke(dlq.app, arguments)
    assert result.exit_code == 0
    assert is_safe(result.stdout)
    assert "red" in result.stdout
    if arguments == ["list"]:
        assert result.stdout.count("\n") == 1


def test_a_raw_dead_letter_goes_untouched_into_a_pipe(letter: DeadLetter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlq, "_broker", lambda *given: (load_settings(), "broker:9092"))
    monkeypatch.setattr(dead_letter_reader, "read_letters", lambda *given: iter([letter]))
    assert CliRunner().invoke(dlq.app, ["show", "0:1", "--raw"]).stdout_bytes == letter.value


def test_the_demos_table_is_safe() -> None:
    file = io.StringIO()
    console = Terminal(file=file, width=200)
    hostile = "[red]a[/] \x1b[31mb\x9bc\u202e"
    print_report(
        DemoReport([QuestionResult(hostile, hostile, hostile, hostile, hostile, False, True)], {}), console, True
    )
    assert is_safe(file.getvalue().replace("\n", ""))
    assert file.getvalue().count("[red]a[/] \\x1b[31mb") == 5


def test_a_source_is_one_safe_line() -> None:
    source = {"weight": 0.5, "title": "Fake\n 100% Real \x1b[31m", "doc_id": "a", "url": "http://a\x9b2J"}
    assert _source_line(source) == "   50% Fake  100% Real \\x1b[31m  http://a\\x9b2J"
    assert on_one_line("a\nb\r\nc") == "a b\\r c"


def test_an_error_is_one_safe_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise FeedError("http://a: \x1b]0;title\x07 is\nno feed")
    assert ended.value.code == 5
    assert capsys.readouterr().err == "cmt: http://a: \\x1b]0;title\\x07 is no feed\n"


def test_a_log_message_is_one_safe_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        set_up_logging("INFO")
        logging.getLogger("services.test").warning(
            "document %r and %s", "a\x1bb", "\x1b[31m\n2026-01-01 ERROR forged\u202e"
        )
        shown = capsys.readouterr().err
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert shown.count("\n") == 1
    assert is_safe(shown.strip("\n"))
    assert "\\x1b[31m 2026-01-01 ERROR forged\\u202e" in shown
