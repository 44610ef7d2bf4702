"""Turns the tokens of an answer into text that can be shown at once: never half a character, never half a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["TextStream"]

_TAIL_TOKENS = 8  # earlier tokens that decide how the next one is written (spaces, joined characters)


class TextStream:
    """The text of an answer without white space around it, up to the first of `stops`; `decode(ids)` gives tokens' text.

    An answer that `goes_on` keeps the white space at its start.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), *, goes_on: bool = False
    ) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._settled = 0  # tokens whose text stands in _text for good
        self._text = ""
        self._shown = 0
        self._goes_on = goes_on
        self.stopped = False

    @property
    def text(self) -> str:
        """The answer so far, as it may be shown."""
        return self._text[: self._shown].strip()

    def push(self, token: int) -> str:
        """Takes a token and gives the text that can be shown now; sets `stopped` when a stop string was met."""
        self._ids.append(token)
        start = max(0, self._settled - _TAIL_TOKENS)
        before, now = self._decode(self._ids[start : self._settled]), self._decode(self._ids[start:])
        if now.endswith("\ufffd") or not now.startswith(before):
            return ""  # the middle of a character, or a token that changes how its neighbour is written
        self._text += now[len(before) :]
        self._settled = len(self._ids)
        return self._show(self._cut())

    def finish(self) -> str:
        """The text that was held back, once no token comes any more; a character that was not finished is left out."""
        if self.stopped:
            return ""
        start = max(0, self._settled - _TAIL_TOKENS)
        self._text += self._decode(self._ids[start:])[len(self._decode(self._ids[start : self._settled])) :]
        self._text = self._text.rstrip("\ufffd")
        self._cut()
        return self._show(len(self._text))

    def _cut(self) -> int:
        """How much may be shown: up to a stop string, or up to what might become one."""
        ends = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._text = self._text[: min(ends)]
            return len(self._text)
        held = max((_overlap(self._text, stop) for stop in self._stops), default=0)
        return len(self._text) - held

    def _show(self, end: int) -> str:
        """White space at the start is dropped, at the end it waits for what follows."""
        end = len(self._text[:end].rstrip())
        if end <= self._shown:
            return ""
        fresh = self._text[self._shown : end]
        first = not self._text[: self._shown].strip()
        self._shown = end
        return fresh.lstrip() if first and not self._goes_on else fresh


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
