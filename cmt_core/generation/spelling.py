"""Answers that are spelled from their sources: the LLM reads memories and chooses, the texts say how it is written.

A memory knows which name stands in a document better than how the name is spelled. Of the likeliest next tokens the first is
taken with which the answer still is the beginning of a span of a source's text. No text reaches the LLM (docs/decisions/0171).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from torch import Tensor

from cmt_core.text.spelling import SourceSpans

__all__ = ["CANDIDATES", "Speller", "likeliest_first"]

CANDIDATES = 128
"""The likeliest tokens among which one is looked for."""


class Speller:
    """Says which tokens keep an answer a span of its sources' texts; `text(ids)` is that of the answer's tokens.

    Where no likely token did, the answer is free from there on.
    """

    def __init__(self, texts: Sequence[str], text: Callable[[Sequence[int]], str], stop_ids: Collection[int]) -> None:
        self._spans, self._text, self._stop_ids = SourceSpans(texts), text, stop_ids

    def best(self, written: Sequence[int], logits: Tensor) -> int:
        """The next token of an answer, the likeliest that fits what is `written` of it; logits (V,)."""
        return next(self.fitting(written, likeliest_first(logits)), int(logits.argmax()))

    def allowed(self, written: Sequence[int], logits: Tensor) -> list[int] | None:
        """The likely next tokens, of logits (V,), to draw from; None for all of them."""
        return list(self.fitting(written, likeliest_first(logits))) or None

    def fitting(self, written: Sequence[int], likely: Iterable[int]) -> Iterator[int]:
        """Those of some tokens, in their order, with which an answer goes on as a span; none of an answer that is free."""
        so_far = self._text(written)
        if not self._begins(so_far):
            return
        for token in likely:
            if token in self._stop_ids:
                if self._spans.has(so_far):
                    yield token
            elif self._begins(self._text([*written, token])):
                yield token

    def _begins(self, text: str) -> bool:
        return text.endswith("\ufffd") or self._spans.may_begin(text)


def likeliest_first(logits: Tensor) -> Iterator[int]:
    """The likeliest tokens, of logits (V,); those behind the first are looked up only where they are asked for."""
    best = int(logits.argmax())
    yield best
    likely: list[int] = logits.topk(min(CANDIDATES, len(logits))).indices.tolist()
    yield from (token for token in likely if token != best)
