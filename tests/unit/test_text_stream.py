"""Text as it is shown while it is written: whole characters, no stop string, no white space around it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.query.engine.text_stream import TextStream


def decode(ids: Sequence[int]) -> str:
    """Tokens are bytes, as in a byte-level vocabulary."""
    return bytes(ids).decode("utf-8", "replace")


def run(text: str, *stops: str) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stops)
    pieces = []
    for token in text.encode():
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@given(st.text())
def test_pieces_add_up_to_the_text_without_white_space_around_it(text: str) -> None:
    pieces, stream = run(text)
    assert "".join(pieces) == stream.text == text.rstrip("\ufffd").strip()


@given(st.text(alphabet="ab \n", max_size=40), st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_and_shows_nothing_of_it(text: str, stops: list[str]) -> None:
    pieces, stream = run(text, *stops)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert stream.stopped == bool(ends)
    shown = "".join(pieces)
    assert shown == stream.text
    for stop in stops:
        assert stop not in shown
    if not ends:
        assert shown == text.strip()


@pytest.mark.parametrize("text", ["é", "日本", "🙂 ok", "a \ufffd b"])
def test_character_of_several_tokens_is_shown_whole(text: str) -> None:
    pieces, _ = run(text)
    assert all(piece in text for piece in pieces)
    assert "".join(pieces) == text


@pytest.mark.parametrize("half", [b"\xc3", b"\xe6", b"\xe6\xa9", b"\xf0\x9f\x99", b"\xe6\xf0"])
def test_half_a_character_at_the_very_end_is_never_shown(half: bytes) -> None:
    stream = TextStream(decode)
    shown = [stream.push(token) for token in (*b"ab ", *half)]
    assert ("".join(shown), stream.finish(), stream.text) == ("ab", "", "ab")


def test_beginning_of_a_stop_string_waits_and_is_shown_when_it_is_none() -> None:
    stream = TextStream(decode, ("END",))
    assert [stream.push(token) for token in b"xENx"] == ["x", "", "", "ENx"]
