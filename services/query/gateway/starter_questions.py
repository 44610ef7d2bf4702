"""Makes a question of an article's own words: who did what its first sentences tell."""

from __future__ import annotations

import re

from cmt_core.text.windows import sentences

__all__ = ["question_of"]

_SENTENCES = 6  # of an article that are looked at
_FEWEST_WORDS, _MOST_WORDS = 4, 16  # of what somebody did: less is vague, more is no question that a person asks
_PAST = (
    "became began beat bought broke brought built caught chose cut dug drew fell found fought gave grew held hit kept led lent "
    "let lost made met paid put ran rose sang sank saw sent set shot shut sold spent split spoke stole struck swam swept threw "
    "took taught won wrote"
)
_NOBODY = "A An The This That These Those It Its He She They We I His Her Their There Here"
_ABOUT = re.compile(
    r"\b(?:he|she|they|it|his|her|their|its|this|that|these|those|here|there|I|we|our)\b", re.IGNORECASE
)
# a name of up to five words that ends in capitals, and at once what was done; English alone
_SENTENCE = re.compile(
    rf"(?!(?:{'|'.join(_NOBODY.split())})\b)"
    r"(?P<who>[A-Z][\w'’.-]*(?: (?:of|de|van|von|the|&|[a-z]+er|[A-Z][\w'’.-]*)){0,4}? ?[A-Z]?[\w'’.-]*)"
    rf" (?P<did>(?:\w{{2,}}ed|{'|'.join(_PAST.split())}) [^\"“”;:?!]+?)\."
)


def question_of(text: str) -> str | None:
    """A question that a sentence of the text answers, None where no sentence is simple enough."""
    for sentence in sentences(text)[:_SENTENCES]:
        told = _SENTENCE.fullmatch(sentence)
        if told is None:
            continue
        did = told["did"].split(", ")[0]
        if _FEWEST_WORDS <= len(did.split()) <= _MOST_WORDS and not _ABOUT.search(did):
            return f"Who {did}?"
    return None
