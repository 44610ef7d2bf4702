"""Splits a document into windows that the LLM reads at once, at sentence borders and with a small overlap."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from cmt_core.text.normalisation import normalised, on_one_line

__all__ = ["Window", "sentences", "split_document"]

_CUT_FILL = 0.9  # of a window's room for the pieces of a sentence that fills several, so that few have to be cut again

_SENTENCE_END = re.compile(
    r"((?<=[.!?])[\"'”’)\]]*)\s+(?=[\"'“‘(\[]?[^\W_a-z])"  # a capital or a digit follows, or a script without capitals
    r"|((?<=[。！？｡។။।])[”’」』）]*)\s*(?=\S)"  # full stops that no space follows
    r"|\n+"
)


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a document: its place, its text as it came, and the normalised title that is read before the text.

    `tokens` is the length of title and text as the split counted it, sentence by sentence; 0 where nobody did.
    """

    number: int
    title: str
    text: str
    tokens: int = field(default=0, compare=False)

    @property
    def reading(self) -> str:
        """What the LLM reads."""
        return f"{self.title}\n{self.text}" if self.title else self.text


def split_document(title: str, text: str, max_tokens: int, count: Callable[[str], int]) -> list[Window]:
    """Windows of at most `max_tokens` tokens, the title counted in each; the last sentence of one opens the next.

    `count` gives a string's number of tokens. A sentence longer than a window is cut at words.
    """
    count = functools.cache(count)  # a sentence that opens a window was counted before
    title = _shortened(on_one_line(title), max_tokens // 4, count)
    title_tokens = count(f"{title}\n") if title else 0
    room = max_tokens - title_tokens - 2  # two spare: tokens merge differently across joins
    pieces = [piece for sentence in sentences(text) for piece in _cut(sentence, room, count)]
    windows: list[Window] = []
    current: list[str] = []
    used = 0
    for sentence in pieces:
        tokens = count(f" {sentence}")
        if current and used + tokens > room:
            windows.append(Window(len(windows), title, " ".join(current), title_tokens + used))
            overlap = current[-1:] if len(current) > 1 else []
            used = count(overlap[0]) if overlap else 0
            current, used = (overlap, used) if used + tokens <= room else ([], 0)
        used += tokens if current else count(sentence)  # a word without its space can be many tokens
        current.append(sentence)
    if current:
        windows.append(Window(len(windows), title, " ".join(current), title_tokens + used))
    return windows


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space around them; a line break ends one, too."""
    lines = _SENTENCE_END.sub(r"\1\2\n", text).split("\n")  # closing quotes and brackets stay with their sentence
    return [" ".join(line.split()) for line in lines if normalised(line).strip()]


def _cut(sentence: str, room: int, count: Callable[[str], int]) -> list[str]:
    """Pieces of at most `room` tokens, equally long as far as words allow; a word that is too long is cut anywhere.

    Most texts are counted twice, however long they are: once whole, once in pieces.
    """
    if len(normalised(sentence).encode(errors="surrogatepass")) < room:  # no token is less than a byte
        return [sentence]
    tokens = count(sentence)
    if tokens <= room or len(sentence) < 2:
        return [sentence]
    parts = max(2, math.ceil(tokens / (_CUT_FILL * room))) if tokens > 2 * room else 2
    pieces: list[str] = []
    start = 0
    for part in range(parts, 0, -1):
        aim = start + (len(sentence) - start) // part if part > 1 else len(sentence)
        at = sentence.rfind(" ", start + 1, aim + 1) if part > 1 else aim
        end = at if at > start else max(aim, start + 1)
        if piece := sentence[start:end].strip():
            pieces.append(piece)
        start = end
    return [one for piece in pieces for one in _cut(piece, room, count)]


def _shortened(title: str, max_tokens: int, count: Callable[[str], int]) -> str:
    while title and count(title) > max_tokens:
        title = title[: int(len(title) * 0.8)].rsplit(" ", 1)[0] if " " in title else title[: len(title) // 2]
    return title
