"""Which beginnings of an answer a span of its sources' texts can still grow from, letter by letter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from cmt_core.text.normalisation import on_one_line
from cmt_core.text.words import WITHOUT_SPACES

__all__ = ["SourceSpans"]

_INSIDE = re.compile(rf"[^\W{WITHOUT_SPACES}]")  # of a word that has a beginning and an end
_WORD = re.compile(r"[^\W_]")
_ARTICLES = ("a", "an", "the")
_KEPT_TEXTS = 512


class SourceSpans:
    """The spans of some texts, from the beginning of a word to the end of one. Capitals and kinds of white space don't count.

    An answer may have an article before its span.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._text = "\n".join(map(_form_of_text, texts))  # an answer has no line ends, so no span goes over one

    def has(self, answer: str) -> bool:
        """Whether an answer is a whole span, of more than an article."""
        return any(
            _WORD.search(span) and span not in _ARTICLES and any(map(self._ends_word, self._ends(span)))
            for span in _spans(answer)
        )

    def may_begin(self, answer: str) -> bool:
        """Whether a span begins as this answer does; its last word may go on."""
        begun = _form(answer)
        if any(article.startswith(begun) for article in _ARTICLES):
            return True
        return any(True for span in _spans(answer) for _ in self._ends(span))

    def _ends(self, span: str) -> Iterator[int]:
        """Where a text goes on behind each place at which it has the beginning of a span."""
        at = self._text.find(span)
        while at >= 0:
            if not (at and _INSIDE.match(span) and _INSIDE.match(self._text, at - 1)):
                yield at + len(span)
            at = self._text.find(span, at + 1)

    def _ends_word(self, end: int) -> bool:
        return not (_INSIDE.match(self._text, end - 1) and _INSIDE.match(self._text, end))


def _spans(answer: str) -> Iterator[str]:
    """The answer in the form in which it is compared, and without an article before it."""
    asked = _form(answer)
    yield asked
    article, _, rest = asked.partition(" ")
    if rest and article in _ARTICLES:
        yield rest


@lru_cache(_KEPT_TEXTS)
def _form_of_text(text: str) -> str:
    return _form(text)


def _form(text: str) -> str:
    return on_one_line(text).casefold()
