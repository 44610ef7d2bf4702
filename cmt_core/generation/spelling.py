"""Answers that are spelled from their sources: the LLM reads memories and chooses, the texts say how it is written.

A memory knows which name stands in a document better than how the name is spelled. Of the likeliest next tokens the first is
taken with which the answer still is the beginning of a span of a source's text. No text reaches the LLM (docs/decisions/0171).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from cmt_core.text.spelling import SourceSpans

__all__ = ["Speller"]

_CANDIDATES = 128


class Speller:
    """Keeps one answer a span of its sources' texts; `text(ids)` is that of the answer's tokens.

    It is asked for one token after the other. Where no likely token fits, the answer is free from there on.
    """

    def __init__(self, texts: Sequence[str], text: Callable[[Sequence[int]], str], stop_ids: set[int]) -> None:
        self._spans, self._text, self._stop_ids = SourceSpans(texts), text, stop_ids
        self._ids: list[int] = []
        self._free = False

    def best(self, logits: Tensor) -> int:
        """The likeliest next token, of logits (V,)."""
        best = int(logits.argmax())
        if self._free or self._fits(best):
            return best
        found = next(self._fitting(logits), None)
        self._free = found is None
        return best if found is None else found

    def allowed(self, logits: Tensor) -> list[int] | None:
        """The likely next tokens, of logits (V,), to draw from; None for all of them."""
        found = [] if self._free else list(self._fitting(logits))
        self._free = not found
        return found or None

    def take(self, token: int) -> None:
        """The answer goes on with a token."""
        self._ids.append(token)

    def _fitting(self, logits: Tensor) -> Iterator[int]:
        likely = logits.topk(min(_CANDIDATES, len(logits))).indices.tolist()
        return (token for token in likely if self._fits(token))

    def _fits(self, token: int) -> bool:
        if token in self._stop_ids:
            return self._spans.has(self._text(self._ids))
        text = self._text([*self._ids, token])
        return text.endswith("\ufffd") or self._spans.may_begin(text)
