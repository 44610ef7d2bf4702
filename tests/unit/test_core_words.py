"""Words are found in every script, however it is written; English has the words that it had."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_core.retrieval.hybrid import HybridIndex
from cmt_core.retrieval.proximity import proximity
from cmt_core.text.normalisation import normalised
from cmt_core.text.words import words

NEWS = {
    "ja": "霧島市で新しい橋が開通した。長さは四百二十メートルである。設計したのは中野遙だ。",
    "zh": "北京市人民政府宣布新大桥开通。全长四百二十米。",
    "th": "สะพานใหม่เปิดใช้แล้วในกรุงเทพมหานคร ข้าวแพงขึ้น",
    "km": "ភ្នំពេញមានស្ពានថ្មី។ វាមានប្រវែង៤២០ម៉ែត្រ។",
    "my": "ရန်ကုန်တွင်တံတားအသစ်ဖွင့်လှစ်ခဲ့သည်။",
    "lo": "ຂົວໃໝ່ເປີດໃຊ້ແລ້ວໃນວຽງຈັນ",
    "ko": "서울에서 새로운 다리가 개통되었다.",
    "hi": "दिल्ली में नया पुल खुला।",
    "fa": "پل تازه در تهران باز می‌شود.",
    "de": "Das Gesamt\u00adkonzept der Cafe\u0301s in Zu\u0308rich.",
    "en": "The new bridge opened in Kell on Monday.",
}
ASKED = [
    ("橋", "ja"),
    ("新しい橋", "ja"),
    ("霧島の橋の設計者は誰？", "ja"),
    ("大桥", "zh"),
    ("新大桥", "zh"),
    ("สะพาน", "th"),
    ("ข้าว", "th"),
    ("ស្ពាន", "km"),
    ("តើស្ពានថ្មីនៅឯណា?", "km"),
    ("တံတား", "my"),
    ("ຂົວ", "lo"),
    ("다리", "ko"),
    ("पुल", "hi"),
    ("دوباره باز می شود؟ پل", "fa"),
    ("Gesamtkonzept", "de"),
    ("Zürich", "de"),
    ("bridge", "en"),
]


@pytest.mark.parametrize(("question", "expected"), ASKED)
def test_words_find_the_text_in_its_script(question: str, expected: str) -> None:
    """The keys are all alike, so that words alone decide."""
    keys = np.ones((len(NEWS), 2), np.float16)
    (best, second), *_ = HybridIndex(list(NEWS.values()), keys).nearest([question], keys[:1], 2)
    assert list(NEWS)[best.row] == expected
    assert best.score > second.score


def test_words_that_stand_together_count_in_scripts_without_spaces() -> None:
    together, apart = proximity("新しい橋", ["昨日、新しい橋が開いた。", "新聞によれば、古い鉄橋がしまった。"])
    assert together > 2 * apart


def test_english_words_are_letters_and_digits() -> None:
    text = "The U.S. didn't pay $1,000 for foo_bar, said O’Neill at 3.14 e-mails"
    expected = "The U S didn t pay 1 000 for foo bar said O Neill at 3 14 e mails"
    assert words(text) == expected.split()


def test_an_accent_never_ends_a_word() -> None:
    assert words("Cafe\u0301 ẹ\u0301kọ हिन्दी می‌شود") == ["Café", "ẹ\u0301kọ", "हिन्दी", "میشود"]


def test_characters_of_a_run_stand_alone_and_in_pairs() -> None:
    assert words("iPhone17の橋") == ["iPhone17", "の", "の橋", "橋"]
    assert words("น้ำ") == ["น้", "น้ำ", "ำ"]


@given(st.text())
def test_no_letter_is_lost(text: str) -> None:
    seen = {char for word in words(text) for char in word}
    assert {char for char in normalised(text) if char.isalnum()} <= seen


@given(st.text())
def test_words_have_no_white_space_in_them(text: str) -> None:
    assert " ".join(words(text)).split() == words(text)
