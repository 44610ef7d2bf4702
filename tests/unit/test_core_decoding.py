"""No half of a character comes out of the tokens of an answer, and every whole one does."""

from __future__ import annotations

import random

import pytest

from cmt_core.llm.control_tokens import SafeTokenizer
from cmt_core.llm.decoding import Decoder
from services.query.engine.text_stream import TextStream
from tests.unit.test_core_control_tokens import Family, gemma, llama, mistral, phi, qwen, smol

TEXTS = ["橋が開通した", "أي رصيف افتتح", "ok 🙂 and 👩‍👧 é", "a genuine \ufffd stays\ufffd", "\ufffd橋\ufffd"]


@pytest.fixture(params=[smol, qwen, phi, llama, mistral, gemma], ids=lambda make: make.__name__, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return request.param()


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_cut_anywhere_holds_whole_characters(family: Family, text: str) -> None:
    ids, decoder = SafeTokenizer(family.tokenizer).ids(text), Decoder(family.tokenizer)
    assert len(ids) > len(text.encode()) / 4
    for end in range(len(ids) + 1):
        assert text.startswith(decoder.text(ids[:end]))
    assert decoder.text(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_are_whole_characters_and_add_up(family: Family, text: str) -> None:
    stream = TextStream(Decoder(family.tokenizer).text)
    ids = SafeTokenizer(family.tokenizer).ids(text)
    pieces = [stream.push(id) for id in ids]
    assert "".join([*pieces, stream.finish()]) == text.rstrip("\ufffd")
    assert all(piece in text for piece in pieces)


def test_bytes_that_never_make_a_character_are_left_out(family: Family) -> None:
    """As a small LLM can write them: characters with a token missing, or in any order."""
    ids, decoder = SafeTokenizer(family.tokenizer).ids("新しい橋 🙂"), Decoder(family.tokenizer)
    drawn = random.Random(0)
    for _ in range(50):
        made = drawn.choices(ids, k=12)
        assert "\ufffd" not in decoder.text(made)
        stream = TextStream(decoder.text)
        assert "\ufffd" not in "".join(stream.push(id) for id in made) + stream.finish()


def test_special_tokens_are_no_text(family: Family) -> None:
    ids = SafeTokenizer(family.tokenizer).ids("橋\ufffd")
    end = family.tokenizer.eos_token_id
    assert Decoder(family.tokenizer).text([*ids, end]) == "橋\ufffd"
