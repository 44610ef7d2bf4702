"""What looks the same is the same to the model, to the search by meaning, and to a test model; ASCII stays as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_core.generation.query import Query
from cmt_core.model import CMT
from cmt_core.text.normalisation import normalised
from cmt_core.text.windows import sentences, split_document
from services.testing.lexical import LexicalModel

SAME = {
    "soft hyphens": (
        "Das Gesamt\u00adkonzept am Donau\u00addampf\u00adschiff",
        "Das Gesamtkonzept am Donaudampfschiff",
    ),
    "decomposed accents": ("Cafe\u0301 Zu\u0308rich, Joa\u0303o Pe\u0301res", "Café Zürich, João Péres"),
    "decomposed kana and Hangul": ("か\u3099 \u1112\u1161\u11ab", "が 한"),
    "ligatures": ("The ﬁnance oﬃce of Ĳmuiden, ﬅ", "The finance office of IJmuiden, st"),
    "zero width": ("Vole\u200b ba\u200cke\u200dry\u2060 sold\ufeff", "Vole bakery sold"),
    "byte order mark": ("\ufeffFirst line", "First line"),
    "bidirectional marks": ("\u202eVole\u202c \u2066bakery\u2069\u200f \u061csold", "Vole bakery sold"),
    "spaces": ("1\u00a0000\u202f000\u3000crowns\u2009each", "1 000 000 crowns each"),
    "wide and narrow": ("ＣＯＰ２９ ｶﾞｽ", "COP29 ガス"),
    "letters of mathematics": ("𝐁𝐫𝐞𝐚𝐤𝐢𝐧𝐠 𝟐𝟒", "Breaking 24"),
    "Arabic presentation forms": ("\ufee3\ufeae\ufea3\ufe92\ufe8e", "مرحبا"),
    "hyphens that do not break": ("F\u201116 and MiG\u201029", "F-16 and MiG-29"),
    "control characters": ("A NUL stands\x00here,\x1ba C1\x9btoo", "A NUL stands here, a C1 too"),
    "invisible tags": ("answer\U000e0041\U000e0042 this", "answer this"),
    "variation selectors": ("❤\ufe0f 葛\U000e0100城", "❤ 葛城"),
    "line ends": ("one\u2028two\x85three", "one\ntwo\nthree"),
}
STAYS = [
    "10⁶ ½ … ™ µm № ㎡",  # compatibility forms that say something
    "“quotes” – and — dashes, “…”",
    "霧島市で新しい橋が開通した。（四百二十）",
    "می‌خواهم",  # a joiner that is spelling
    "👨‍👩‍👧 🤷🏽‍♀",  # joiners that hold an emoji together
    "น้ำ ໜ և ㅋㅋ ﷽",
    "a genuine \ufffd stays",
]


@pytest.mark.parametrize(("text", "plain"), SAME.values(), ids=SAME.keys())
def test_what_a_reader_does_not_see_is_gone(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize("text", STAYS)
def test_what_says_something_stays(text: str) -> None:
    assert normalised(text) == text


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.sampled_from("\n\t\r")))
def test_ascii_is_as_it_was(text: str) -> None:
    assert normalised(text) == text


@given(st.text())
def test_normalising_twice_changes_nothing_and_gives_nfc(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert unicodedata.is_normalized("NFC", once)


@pytest.mark.parametrize(("text", "plain"), SAME.values(), ids=SAME.keys())
def test_the_model_reads_and_finds_the_normalised_text(tiny_cmt: CMT, text: str, plain: str) -> None:
    assert tiny_cmt.tokens.ids(text) == tiny_cmt.tokens.ids(plain)
    assert tiny_cmt.tokens.prompt(text, [(text, text)]) == tiny_cmt.tokens.prompt(plain, [(plain, plain)])
    assert tiny_cmt.tokens.closed_prompt(text, (), text) == tiny_cmt.tokens.closed_prompt(plain, (), plain)
    assert (tiny_cmt.query_keys([text]).vectors == tiny_cmt.query_keys([plain]).vectors).all()
    one, other = (tiny_cmt.windows(f"On {part}", f"{part} was in the news.") for part in (text, plain))
    assert (tiny_cmt.document_keys(one).vectors == tiny_cmt.document_keys(other).vectors).all()
    assert [memory.code for memory in tiny_cmt.compress(one)] == [memory.code for memory in tiny_cmt.compress(other)]


def test_windows_keep_the_original_text(tiny_cmt: CMT) -> None:
    (window,) = tiny_cmt.windows("Gesamt\u00adkonzept", "Das Gesamt\u00adkonzept der Cafe\u0301s.")
    assert (window.title, window.text) == ("Gesamtkonzept", "Das Gesamt\u00adkonzept der Cafe\u0301s.")


@pytest.mark.parametrize("text", ["\u200b\u200b", "\ufeff", "\u00ad\n\u2060", " \u00a0\u3000"])
def test_a_text_that_nobody_sees_has_no_windows(text: str) -> None:
    assert split_document("A title", text, 64, len) == []


def test_sentences_end_in_scripts_without_spaces_and_without_capitals() -> None:
    assert sentences("橋が開通した。長さは四百。「短い。」設計者は中野遙だ！") == [
        "橋が開通した。",
        "長さは四百。",
        "「短い。」",
        "設計者は中野遙だ！",
    ]
    assert sentences("Мост открыт. Длина 420 метров. Его строила Вега.") == [
        "Мост открыт.",
        "Длина 420 метров.",
        "Его строила Вега.",
    ]
    assert sentences("पुल खुल गया। लंबाई चार सौ है। ស្ពានថ្មី។វែង") == ["पुल खुल गया।", "लंबाई चार सौ है।", "ស្ពានថ្មី។", "វែង"]
    assert sentences("The U.S. dollar rose, e.g. by 3 p.c. today. It fell.") == [
        "The U.S. dollar rose, e.g. by 3 p.c. today.",
        "It fell.",
    ]


def test_the_test_model_answers_across_spellings() -> None:
    model = LexicalModel()
    (window,) = model.windows("", "The Cafe\u0301 Zu\u0308rich was bought by Joa\u0303o Pe\u0301\u00adres.")
    (memory,) = model.compress([window])
    assert (model.document_keys([window]).vectors == model.query_keys([normalised(window.text)]).vectors).all()
    batch = model.answer_batch()
    (started,) = batch.join([Query("Who bought the Café Zürich?", memories=[memory.code])])
    ids = list(started.tokens)
    while ids[-1] is not None:
        ids += batch.step()[started.row]
    assert batch.text([id for id in ids if id is not None]) == "The Café Zürich was bought by João Péres."
