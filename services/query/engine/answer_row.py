"""One answer in the running batch: what it was asked with, the text it has written, and the reply it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from cmt_core.generation.query import AnswerStart, Query
from services.bank.records import Hit
from services.query.engine.messages import UNKNOWN, Ask, HitList, Reply, Source
from services.query.engine.ports import AnsweringModel
from services.query.engine.text_stream import TextStream
from services.query.engine.ticket import Ticket

__all__ = ["AnswerRow", "query_of", "unknown_reply"]

_CLOSED_INSTRUCTION = "You are a helpful assistant. Answer in one sentence. If you do not know, say so."


class AnswerRow:
    """An answer of at most `longest` tokens, or as many as were asked for; `finish_reason` is set with its last token."""

    def __init__(
        self,
        ticket: Ticket,
        started: AnswerStart,
        decode: Callable[[Sequence[int]], str],
        longest: int,
        notes: Sequence[str] = (),
    ) -> None:
        self.ticket = ticket
        self._notes = tuple(notes)
        self.number = started.row
        self.first_token = started.token
        self.finish_reason: Literal["stop", "length"] | None = None
        self._started = started
        self._stream = TextStream(decode, ticket.ask.stop)
        self._tokens = 0
        self._longest = ticket.ask.max_new_tokens or longest
        self._first_ms = ticket.ms()

    def push(self, token: int | None) -> str:
        """Takes the next token (None: the answer has ended) and gives the text that can be shown now."""
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
        return text

    def reply(self, model: AnsweringModel) -> Reply:
        """The whole answer of `model`."""
        ask, found = self.ticket.ask, self.ticket.found
        return Reply(
            answer=self._stream.text,
            sources=_sources(found.hits, self._started.weights),
            prompt_tokens=self._started.prompt_tokens,
            completion_tokens=self._tokens,
            finish_reason=self.finish_reason or "stop",
            model_id=model.model_id,
            bank_version=found.bank_version,
            retrieve_ms=found.retrieve_ms,
            first_token_ms=self._first_ms,
            generate_ms=self.ticket.ms() - self._first_ms,
            mode=ask.mode,
            notes=self._notes if model.follows_instructions else (*self._notes, *_notes(ask)),
        )


def query_of(ask: Ask, found: HitList, follows_instructions: bool = True) -> Query:
    """What the model is asked: the found memories, their texts, or the best one's text, as the mode says.

    A model that reads behind a trained prefix has a chat prompt in `closed` alone, and no system message of a client's.
    """
    texts = {"rag": found.hits, "hybrid": found.hits[:1]}.get(ask.mode, ())
    reads_memories = ask.mode in ("memory", "hybrid")
    unprompted = ask.mode == "closed" and not ask.instructions and not follows_instructions
    return replace(
        ask,
        instructions=_CLOSED_INSTRUCTION if unprompted else ask.instructions,
        memories=[hit.memory for hit in found.hits] if reads_memories else (),
        scores=[float(hit.rank) for hit in found.hits] if reads_memories else None,
        passages=[_passage(hit) for hit in texts],
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
        notes=(_why_unknown(ask, found),),
    )


def _why_unknown(ask: Ask, found: HitList) -> str:
    if ask.as_of is not None and found.began is not None and ask.as_of < found.began:
        return f"the bank was still empty at that moment: its first document came at {found.began.isoformat(timespec='seconds')}"
    best = "" if found.best_score is None else f" (best score {found.best_score:.2f})"
    return f"the bank holds nothing that is relevant to this question{best}"


def _passage(hit: Hit) -> str:
    """The text that the compressor read when it wrote this hit's memory: a fair RAG baseline reads the same."""
    return f"{hit.title}\n{hit.text}" if hit.title else hit.text


def _notes(ask: Ask) -> tuple[str, ...]:
    if ask.instructions and ask.mode != "closed":
        return ("system messages have no effect here: the model was trained to answer from what it reads",)
    return ()


def _sources(hits: Sequence[Hit], weights: Sequence[float]) -> tuple[Source, ...]:
    known: Sequence[float | None] = weights if len(weights) == len(hits) else [None] * len(hits)
    return tuple(Source.of(hit, weight) for hit, weight in zip(hits, known, strict=True))
