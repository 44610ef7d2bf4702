"""Whether an answer stands in the texts that it was read from, and where.

A short answer must stand there word for word. Of a sentence the names, the numbers and what it quotes must, and most of its other
words: a sentence may be put otherwise than its source, but a name that no source has was garbled or made up. Names are told by
their capitals, so a script without capitals has numbers and words alone.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from cmt_core.text.normalisation import normalised
from cmt_core.text.windows import sentences
from cmt_core.text.words import WITHOUT_SPACES

__all__ = ["Place", "Verdict", "grounding_of", "parts_of", "says_nothing"]

Place = tuple[int, int]
"""Where something stands in a text: its first character, and the one behind its last."""

_SHORT_WORDS = 6  # up to so many, without a full stop, are a span and no sentence
_LEAST_SHARE = 0.6  # of a sentence's words that its sources, or the question, must have
_TOKEN = re.compile(rf"\d+(?:[.,:]\d+)*|[{WITHOUT_SPACES}]|[^\W\d_{WITHOUT_SPACES}]+")
_MARKER = re.compile(r"[-*\u2022\u00b7#]+|\(?\d{1,2}[.):]")  # of a list's item
_QUOTED = re.compile(r"[\"“„«]([^\"“”„«»]+)[\"”“»]")
_SENTENCE = re.compile(r"[.!?…][\"'”’)]*$")
_BETWEEN = 2
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half dozen"
)
_PLAIN_WORDS = (
    "i you he she we they it its his her their our your who whom whose what when where which why how did does do was were "
    "has have had been being also however according based because since after before during while although both all some many "
    "several each another other yes no none about from by out up down over under between among than so such more most"
)
_NUMBERS = frozenset(_NUMBER_WORDS.split())
_PLAIN = frozenset((*STOPWORDS_EN, *_PLAIN_WORDS.split()))
_PARSED_TEXTS = 512


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is grounded, in which of the texts (numbers), and where it stands in the first of them word for word.

    `missing` are names, numbers and quotations that none of the texts has.
    """

    grounded: bool
    sources: tuple[int, ...] = ()
    place: Place | None = None
    missing: tuple[str, ...] = ()


def grounding_of(answer: str, texts: Sequence[str], question: str = "") -> Verdict:
    """Compares an answer with the texts that it may have come from, the likeliest first.

    What the question says itself needs no source, but an answer of nothing else has none.
    """
    asked, parsed = _tokens(answer), [_parsed(text) for text in texts]
    wanted = [token.word for token in asked if token.word not in _ARTICLES]
    if not wanted:
        return Verdict(False)
    for number, text in enumerate(parsed):
        if (found := text.find(wanted)) is not None:
            return Verdict(True, (number,), text.place(*found))
    facts, known = _facts(answer, asked), _parsed(question)
    missing = tuple(" ".join(fact) for fact in facts if not any(one.tells(fact) for one in (*parsed, known)))
    if missing or (len(wanted) <= _SHORT_WORDS and not _SENTENCE.search(answer.strip())):
        return Verdict(False, missing=missing)
    return _sentence_verdict(wanted, facts, parsed, known)


def parts_of(answer: str, by_sentence: bool) -> list[str]:
    """What of an answer is compared by itself: its sentences, or the whole of it."""
    parts = sentences(answer) if by_sentence else [answer]
    return [part for part in parts if not says_nothing(part)]


def says_nothing(part: str) -> bool:
    """Whether a part of an answer is white space or the number of a list's item."""
    bare = part.strip()
    return not bare or _MARKER.fullmatch(bare) is not None


@dataclass(frozen=True, slots=True)
class _Token:
    """A word or a number in the form in which two are compared, and where it stands."""

    word: str
    start: int
    end: int
    capital: bool


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A text's tokens without articles, their stems, and the text as it came."""

    text: str
    tokens: tuple[_Token, ...]
    words: tuple[str, ...]
    stems: frozenset[str]

    def find(self, wanted: Sequence[str]) -> tuple[int, int] | None:
        """The first and the last of the tokens that are `wanted`, one right behind the other."""
        size, first = len(wanted), wanted[0]
        for at, word in enumerate(self.words):
            if word == first and self.words[at : at + size] == tuple(wanted):
                return at, at + size - 1
        return None

    def tells(self, fact: Sequence[str]) -> bool:
        """Whether the words of a fact stand in their order, with no more than a middle name between two of them."""
        starts = [at for at, word in enumerate(self.words) if word == fact[0]]
        return any(self._follow(fact[1:], at) for at in starts)

    def _follow(self, rest: Sequence[str], at: int) -> bool:
        for word in rest:
            ahead = self.words[at + 1 : at + 2 + _BETWEEN]
            if word not in ahead:
                return False
            at += 1 + ahead.index(word)
        return True

    def place(self, first: int, last: int) -> Place:
        """Where tokens stand in the text as it came."""
        start, end = self.tokens[first].start, self.tokens[last].end
        if self.text == normalised(self.text):
            return start, end
        return _original(self.text, start), _original(self.text, end)


def _sentence_verdict(
    wanted: Sequence[str], facts: Sequence[tuple[str, ...]], parsed: Sequence[_Parsed], known: _Parsed
) -> Verdict:
    """Of an answer whose facts all stand somewhere: the fewest texts that have them, the likeliest first."""
    stems = {_stem(word) for word in wanted if word not in _PLAIN} or {_stem(word) for word in wanted}
    told = [fact for fact in facts if not known.tells(fact)]
    for size in (1, 2, len(parsed)):
        for chosen in itertools.combinations(range(len(parsed)), min(size, len(parsed))):
            texts = [parsed[number] for number in chosen]
            read = frozenset().union(*(text.stems for text in texts))
            own = len(stems & read)
            enough = own and len(stems & (read | known.stems)) >= _LEAST_SHARE * len(stems)
            if enough and all(any(text.tells(fact) for text in texts) for fact in told):
                return Verdict(True, chosen)
    return Verdict(False)


def _facts(answer: str, tokens: Sequence[_Token]) -> list[tuple[str, ...]]:
    """Names, numbers and quotations of an answer, each as the words that must stand together."""
    plain = normalised(answer)
    facts = [
        tuple(token.word for token in _tokens(found[1]) if token.word not in _ARTICLES)
        for found in _QUOTED.finditer(plain)
    ]
    starts = _sentence_starts(plain)
    run: list[str] = []
    before = 0
    for token in [*tokens, None]:
        name = token is not None and token.capital and not (token.start in starts and token.word in _PLAIN | _ARTICLES)
        together = token is not None and plain[before : token.start].strip() in ("", "-", "'", "’", ".", "&")
        if run and not (name and together):
            facts.append(tuple(run))
            run = []
        if token is None:
            break
        if name and token.word not in _ARTICLES:
            run.append(token.word)
        elif token.word[0].isdigit() or token.word in _NUMBERS:
            facts.append((token.word,))
        before = token.end
    return [fact for fact in dict.fromkeys(facts) if fact and fact != ("i",)]


def _sentence_starts(text: str) -> set[int]:
    """Where the first word of each sentence stands."""
    starts, at = set[int](), 0
    for sentence in sentences(text):
        first = _TOKEN.search(sentence)
        found = text.find(sentence.split()[0], at) if first else -1
        if first and found >= 0:
            starts.add(found + first.start())
            at = found + 1
    return starts


def _tokens(text: str) -> list[_Token]:
    return [
        _Token(_form(found[0]), found.start(), found.end(), found[0][0].isupper())
        for found in _TOKEN.finditer(normalised(text))
    ]


def _form(word: str) -> str:
    """Words in lower case, numbers without the commas between thousands."""
    return re.sub(r",(?=\d{3}\b)", "", word) if word[0].isdigit() else word.lower()


@lru_cache(_PARSED_TEXTS)
def _parsed(text: str) -> _Parsed:
    tokens = tuple(token for token in _tokens(text) if token.word not in _ARTICLES)
    kept = tuple(token.word for token in tokens)
    return _Parsed(text, tokens, kept, frozenset(_stem(word) for word in kept))


@lru_cache(16384)
def _stem(word: str) -> str:
    stem: str = Stemmer.Stemmer("english").stemWord(word)  # a stemmer can't be shared by threads, and words repeat
    return stem


def _original(text: str, at: int) -> int:
    """The place in a text of the character that stands at `at` when it is normalised."""
    return bisect.bisect_left(range(len(text)), at, key=lambda end: len(normalised(text[:end])))
