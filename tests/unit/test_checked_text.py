"""An answer on its way out: held until it was compared, kept from being sent, and with the names of its sources."""

from __future__ import annotations

from typing import Any

import pytest

from services.query.engine.checked_text import CheckedText

BRIDGE = "Mayor Lund opened the bridge in Aarhus on Monday."
FERRY = "The ferry to Samso was cancelled by a storm."


def checked(**options: Any) -> CheckedText:
    given = {"by_sentence": True, "hold": False} | options
    return CheckedText([BRIDGE, FERRY], [2, 1], "Who opened the bridge?", **given)


def pushed(one: CheckedText, text: str, size: int = 3) -> str:
    """All that comes out of a text that goes in by pieces."""
    sent = "".join(one.push(text[at : at + size]) for at in range(0, len(text), size))
    return sent + ("" if one.doubted else one.finish())


def test_what_is_not_held_flows_and_is_judged_at_the_end() -> None:
    one = checked()
    assert one.push("Lund op") == "Lund op"
    assert pushed(one, "ened it on Friday.") == "ened it on Friday."
    assert one.text == "Lund opened it on Friday."
    assert one.grounded is False


def test_held_sentences_come_when_they_were_compared() -> None:
    one = checked(hold=True, doubt=True)
    assert one.push("Lund opened the bridge") == ""
    assert one.push(" in Aarhus. ") == ""  # it may go on
    assert one.push("The ferry") == "Lund opened the bridge in Aarhus."
    assert one.push(" was cancelled.") == ""
    assert one.finish() == " The ferry was cancelled."
    assert one.text == "Lund opened the bridge in Aarhus. The ferry was cancelled."
    assert one.grounded


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_nothing_is_sent_from_the_first_doubt_on(size: int) -> None:
    one = checked(hold=True, doubt=True)
    said = "Lund opened the bridge in Aarhus. Mayor Quist wept. The ferry was cancelled."
    assert pushed(one, said, size) == "Lund opened the bridge in Aarhus."
    assert one.doubted
    assert one.begun == "Lund opened the bridge in Aarhus."
    rest = one.release()
    assert (one.sent, one.doubted, one.grounded) == (said[: len(one.sent)], False, False)
    assert rest.startswith(" Mayor Quist wept.")


def test_a_short_answer_is_compared_as_a_whole() -> None:
    one = checked(by_sentence=False, hold=True, doubt=True)
    assert one.push("Mayor ") + one.push("Lund") == ""
    assert one.finish() == "Mayor Lund"
    assert one.whole_place == (2, (0, 10))
    doubted = checked(by_sentence=False, hold=True, doubt=True)
    assert pushed(doubted, "Mayor Lond") == ""
    assert doubted.doubted
    assert doubted.begun == ""


def test_parts_end_with_the_numbers_of_their_sources() -> None:
    one = checked(cite=True)
    said = "Lund opened the bridge in Aarhus! Quist wept.\n- The ferry to Samso was cancelled."
    assert pushed(one, said) == (
        "Lund opened the bridge in Aarhus [2]! Quist wept.\n- The ferry to Samso was cancelled [1]."
    )
    short = checked(cite=True, by_sentence=False)
    assert pushed(short, "Mayor Lund") == "Mayor Lund [2]"


def test_an_answer_that_goes_on_has_its_beginning() -> None:
    one = checked(begun="Lund opened the bridge [2].")
    assert pushed(one, " It rained.") == " It rained."
    assert one.text == "Lund opened the bridge [2]. It rained."
    assert one.whole_place is None


def test_numbers_of_a_list_are_no_claims() -> None:
    one = checked(hold=True, doubt=True)
    assert pushed(one, "1. Mayor Lund.\n2. The ferry to Samso.") == "1. Mayor Lund.\n2. The ferry to Samso."
    assert one.grounded
