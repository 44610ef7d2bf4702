"""An answer's text on its way out: what it says is compared with its sources, and sentences can name them.

A part of an answer is a whole sentence, or the whole answer where answers are a few words. Held back, it is sent when it was
compared; what does not stand in the sources can be kept from being sent at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from cmt_core.text.grounding import Place, Verdict, grounding_of, says_nothing
from cmt_core.text.windows import sentences

__all__ = ["CheckedText"]

_ENDS = ".!?\u2026\u3002"


class CheckedText:
    """Takes an answer's text piece by piece and gives what may be sent.

    `texts` are those of the sources, the likeliest first, and `numbers` what each is called in the answer; `known` is what the
    one who asks said. `hold`: a part is sent when it was compared, in `sentences` or as a whole. `doubt`: what does not stand in
    the sources is not sent, and nothing after it. `cite`: a part that stands in sources ends with their numbers, as in [2].
    """

    def __init__(
        self,
        texts: Sequence[str],
        numbers: Sequence[int],
        known: str,
        *,
        by_sentence: bool,
        hold: bool,
        doubt: bool = False,
        cite: bool = False,
        begun: str = "",
    ) -> None:
        self._texts, self._numbers, self._known = list(texts), list(numbers), known
        self._by_sentence, self._hold, self._doubt, self._cite = by_sentence, hold or doubt or cite, doubt, cite
        self._begun = begun
        self._text = ""
        self._compared = 0  # characters of _text that were compared
        self._verdicts: list[Verdict] = []
        self.sent = ""
        self.doubted = False

    @property
    def text(self) -> str:
        """The answer as it was sent, with its beginning."""
        return (self._begun + self.sent).strip()

    @property
    def begun(self) -> str:
        """What was sent, without the names of sources: an answer can go on from there."""
        return (self._begun + self._text[: self._compared]).strip()

    @property
    def grounded(self) -> bool:
        """Whether every part stands in the sources; known at the end."""
        return bool(self._verdicts) and all(one.grounded for one in self._verdicts)

    @property
    def whole_place(self) -> tuple[int, Place] | None:
        """A source's number, and where in its text the whole answer stands word for word; None where it does in none."""
        if self._begun or len(self._verdicts) != 1 or (place := self._verdicts[0].place) is None:
            return None
        return self._numbers[self._verdicts[0].sources[0]], place

    def push(self, text: str) -> str:
        """Takes more of the answer and gives what can be sent now."""
        self._text += text
        if not self._hold:
            self.sent += text
            return text
        if not self._by_sentence:
            return ""
        *done, _ = sentences(self._text[self._compared :]) or [""]
        return self._send(done)

    def finish(self) -> str:
        """The answer has ended: compares what is left and gives it, unless it is doubted."""
        rest = self._text[self._compared :]
        left = sentences(rest) if self._by_sentence else [rest]
        if self._hold:
            return self._send(left)
        for part in left:
            self._verdict(part)
        return ""

    def release(self) -> str:
        """Gives what was doubted after all: there is nothing better."""
        self.doubted, self._doubt = False, False
        return self.finish()

    def _send(self, parts: Sequence[str]) -> str:
        sent = ""
        for part in parts:
            if not part.strip() or self.doubted:
                continue
            verdict = self._verdict(part)
            if self._doubt and verdict is not None and not verdict.grounded:
                self.doubted = True
                break
            end = self._end_of(part)
            piece = self._text[self._compared : end]
            own = piece.lstrip()
            sent += piece[: len(piece) - len(own)] + self._cited(own, verdict)
            self._compared = end
        self.sent += sent
        return sent

    def _verdict(self, part: str) -> Verdict | None:
        """How a part stands in the sources, noted unless it is doubted; None for one that says nothing."""
        if says_nothing(part):
            return None
        verdict = grounding_of(part, self._texts, self._known)
        if verdict.grounded or not self._doubt:
            self._verdicts.append(verdict)
        return verdict

    def _end_of(self, part: str) -> int:
        """Where a part ends in the text: sentences come with their white space made plain."""
        at = self._compared
        for word in part.split():
            at = self._text.index(word, at) + len(word)
        return at

    def _cited(self, part: str, verdict: Verdict | None) -> str:
        if not self._cite or verdict is None or not verdict.grounded:
            return part
        marks = "".join(
            f"[{self._numbers[source]}]" for source in sorted(verdict.sources, key=lambda i: self._numbers[i])
        )
        bare = part.rstrip(_ENDS)
        return f"{bare} {marks}{part[len(bare) :]}"
