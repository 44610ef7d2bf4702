"""One answer in the running batch: what it was asked with, the text it has written, and the reply it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from cmt_core.generation.query import AnswerStart, Query
from cmt_core.retrieval.looks import most_read
from cmt_core.text.grounding import Place
from services.bank.records import Hit
from services.query.engine.checked_text import CheckedText
from services.query.engine.messages import UNKNOWN, Ask, HitList, Read, Reply, Source, WeightedBy
from services.query.engine.ports import BankModel
from services.query.engine.text_stream import TextStream
from services.query.engine.ticket import Doubt, Ticket

__all__ = ["AnswerRow", "query_of", "unknown_reply"]

_CLOSED_INSTRUCTION = "You are a helpful assistant. Answer in one sentence. If you do not know, say so."
_READ: dict[str, Read] = {"rag": "text", "hybrid": "both", "closed": "nothing"}


class AnswerRow:
    """An answer of at most `longest` tokens, or as many as were asked for; `finish_reason` is set with its last token.

    `by_sentence`: the model answers in sentences, which are compared with their sources one by one.
    """

    def __init__(
        self,
        ticket: Ticket,
        started: AnswerStart,
        decode: Callable[[Sequence[int]], str],
        longest: int,
        notes: Sequence[str] = (),
        by_sentence: bool = False,
        doubt: Doubt | None = None,
        weighted_by: WeightedBy = "attention",
    ) -> None:
        self.ticket = ticket
        self._weighted_by = weighted_by
        self._notes = tuple(notes)
        self.number = started.row
        self.first_tokens = started.tokens
        self.finish_reason: Literal["stop", "length"] | None = None
        self._started, self._doubt = started, doubt
        self._read = self._most_read()
        begun = doubt.begun if doubt else ""
        self._stream = TextStream(decode, ticket.ask.stop, goes_on=bool(begun))
        self._checked = self._compared(by_sentence, doubt)
        self._tokens = 0
        self._longest = max(1, (ticket.ask.max_new_tokens or longest) - (doubt.tokens if doubt else 0))
        held = ticket.ask.mode == "auto" or ticket.ask.citations
        self._first_ms = doubt.first_ms if doubt and doubt.first_ms is not None else None if held else ticket.ms()

    def push(self, token: int | None) -> str:
        """Takes the next token (None: the answer has ended) and gives the text that can be shown now."""
        text = self._written(token)
        shown = self._checked.push(text)
        if self._checked.doubted:
            self.finish_reason = "stop"  # here; it is asked again
        elif self.finish_reason is not None:
            shown += self._checked.finish()
        return self._shown(shown)

    def cut(self) -> str:
        """Ends the answer here, for want of room, and gives the text that was held back."""
        self.finish_reason = "length"
        return self._shown(self._checked.push(self._stream.finish()) + self._checked.finish())

    @property
    def takes_two(self) -> Doubt | None:
        """Of mode `auto`, before its first word: that it takes two sources together, whose texts say more than their memories."""
        started = self._started
        if self.ticket.ask.mode != "auto" or self._doubt is not None or self._tokens or not started.together:
            return None
        return Doubt(started.together, started.weights, prompt_tokens=started.prompt_tokens)

    @property
    def doubt(self) -> Doubt | None:
        """What is known of an answer that goes where its sources do not; None while it does not."""
        if not self._checked.doubted:
            return None
        started, checked = self._started, self._checked
        best = max(range(len(started.weights)), key=started.weights.__getitem__, default=0)
        return Doubt(
            (best,),
            started.weights,
            checked.begun,
            checked.sent,
            self._tokens,
            started.prompt_tokens,
            self._first_ms,
        )

    def accept(self) -> str:
        """Gives the rest of a doubted answer after all."""
        return self._shown(self._checked.release())

    def reply(self, model: BankModel) -> Reply:
        """The whole answer of `model`."""
        ask, found, before = self.ticket.ask, self.ticket.found, self._doubt
        first_ms = self.ticket.ms() if self._first_ms is None else self._first_ms
        return Reply(
            answer=self._checked.text,
            sources=self._sources(),
            prompt_tokens=self._started.prompt_tokens + (before.prompt_tokens if before else 0),
            completion_tokens=self._tokens + (before.tokens if before else 0),
            finish_reason=self.finish_reason or "stop",
            model_id=model.model_id,
            bank_version=found.bank_version,
            retrieve_ms=found.retrieve_ms,
            first_token_ms=first_ms,
            generate_ms=self.ticket.ms() - first_ms,
            mode=ask.mode,
            notes=self._notes if model.follows_instructions else (*self._notes, *_notes(ask)),
            read="text" if before else _READ.get(ask.mode, "memory"),
            grounded=None if ask.mode == "closed" else self._checked.grounded,
            weighted_by=self._weighted_by,
        )

    def _written(self, token: int | None) -> str:
        if token is None:
            self.finish_reason = "stop"
            return self._stream.finish()
        self._tokens += 1
        text = self._stream.push(token)
        if self._stream.stopped:
            self.finish_reason = "stop"
        elif self._tokens >= self._longest:
            self.finish_reason = "length"
            text += self._stream.finish()
        if self._doubt and self._doubt.begun and text and self._tokens == 1 and not text[0].isspace():
            return f" {text}"  # some tokenizers write no space before the first token
        return text

    def _shown(self, text: str) -> str:
        if text and self._first_ms is None:
            self._first_ms = self.ticket.ms()
        return text

    def _most_read(self) -> list[tuple[Hit, float | None]]:
        """The hits that are the answer's sources, with their shares of attention where these are known."""
        found = self.ticket.found
        weights = self._doubt.weights if self._doubt else self._started.weights
        read = self._doubt.read if self._doubt else self._started.together
        k = len(found.hits) if found.sources is None else found.sources
        if len(weights) != len(found.hits):
            return [(hit, None) for hit in found.hits[:k]]
        return [(found.hits[place], weights[place]) for place in most_read(weights, k, read)]

    def _compared(self, by_sentence: bool, doubt: Doubt | None) -> CheckedText:
        ask, hits = self.ticket.ask, [hit for hit, _ in self._read]
        order = sorted(range(len(hits)), key=lambda number: -(self._read[number][1] or 0.0))
        return CheckedText(
            [hits[number].passage for number in order],
            [number + 1 for number in order],
            "\n".join([ask.question, *(text for turn in ask.earlier for text in turn)]),
            by_sentence=by_sentence,
            hold=ask.mode == "auto" and doubt is None,
            doubt=ask.mode == "auto" and doubt is None and bool(hits),
            cite=ask.citations and bool(hits),
            begun=doubt.sent if doubt else "",
        )

    def _sources(self) -> tuple[Source, ...]:
        places = self._places([hit for hit, _ in self._read])
        return tuple(Source.of(hit, weight, places.get(number)) for number, (hit, weight) in enumerate(self._read, 1))

    def _places(self, hits: Sequence[Hit]) -> dict[int, Place]:
        """Where the answer stands word for word, by the source's number."""
        if (found := self._checked.whole_place) is None:
            return {}
        number, (start, end) = found
        before = len(hits[number - 1].passage) - len(hits[number - 1].text)  # the title
        return {number: (start - before, end - before)} if start >= before else {}


def query_of(
    ask: Ask,
    found: HitList,
    follows_instructions: bool = True,
    doubt: Doubt | None = None,
    *,
    spelled: bool = False,
    candidates: int = 1,
) -> Query:
    """What the model is asked: the found memories, their texts, or the best one's text, as the mode says.

    Of mode `auto` it is memories at first, and with a `doubt` the texts of the sources that it names. A model that
    reads behind a trained prefix has a chat prompt in `closed` alone, and no system message of a client's; its answers can be
    `spelled` from their sources, but for the first one of mode `auto`, which shows by what it says whether text is needed, and
    each is the likeliest of up to so many `candidates`.
    """
    mode = ask.mode if ask.mode != "auto" else "memory" if doubt is None else "rag"
    of_mode = {"rag": found.hits, "hybrid": found.hits[:1]}
    texts = [found.hits[number] for number in doubt.read] if doubt else of_mode.get(mode, ())
    reads_memories = mode in ("memory", "hybrid")
    sentences = follows_instructions or mode == "closed"
    free = sentences or not spelled or (ask.mode == "auto" and doubt is None)
    unprompted = mode == "closed" and not ask.instructions and not follows_instructions
    return replace(
        ask,
        mode=mode,
        instructions=_CLOSED_INSTRUCTION if unprompted else ask.instructions,
        memories=[hit.memory for hit in found.hits] if reads_memories else (),
        scores=[float(hit.rank) for hit in found.hits] if reads_memories else None,
        completed_by=found.completed_by if reads_memories else None,
        passages=[hit.passage for hit in texts],
        begun=doubt.begun if doubt else "",
        spelled_from=() if free else [hit.passage for hit in (texts if mode == "rag" else found.hits)],
        candidates=1 if sentences else candidates,
    )


def unknown_reply(ask: Ask, found: HitList, model_id: str, took_ms: float) -> Reply:
    """The answer when nothing relevant was found; the LLM is not asked."""
    return Reply(
        answer=UNKNOWN,
        sources=(),
        prompt_tokens=0,
        completion_tokens=0,
        finish_reason="stop",
        model_id=model_id,
        bank_version=found.bank_version,
        retrieve_ms=found.retrieve_ms,
        first_token_ms=took_ms,
        generate_ms=0.0,
        mode=ask.mode,
        known=False,
        read="nothing",
        notes=(_why_unknown(ask, found),),
    )


def _why_unknown(ask: Ask, found: HitList) -> str:
    if ask.as_of is not None and found.began is not None and ask.as_of < found.began:
        return f"the bank was still empty at that moment: its first document came at {found.began.isoformat(timespec='seconds')}"
    best = "" if found.best_score is None else f" (best score {found.best_score:.2f})"
    return f"the bank holds nothing that is relevant to this question{best}"


def _notes(ask: Ask) -> tuple[str, ...]:
    if ask.instructions and ask.mode != "closed":
        return ("system messages have no effect here: the model was trained to answer from what it reads",)
    return ()
