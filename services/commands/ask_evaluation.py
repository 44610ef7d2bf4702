"""Questions as people ask them, put to the service's own engine on a bank of the sample news, and judged.

An answer tells the facts when it contains all of them (metrics.contains_facts). It refuses when nothing relevant was found, or
when it says itself that it does not know. Refusing is right where no article tells what is asked.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cmt_core.evaluation.metrics import contains_facts
from services.errors import ServiceError, SettingsError
from services.metrics import Metrics
from services.query.engine.messages import MODELS, Event, Failure, ModelName, Reply
from services.query.engine.ports import Answerer
from services.query.gateway.conversation import Message
from services.query.gateway.requests import ChatRequest, Limits
from services.query.ray_serve.app import load_answerer, open_bank
from services.sample_news import AskedQuestion
from services.stream.record import Document, Tombstone

if TYPE_CHECKING:
    from cmt_core.model import CMT
    from services.settings import Settings

__all__ = ["NOW", "AskPoint", "Judged", "ask_all", "left_out", "made_updates", "models_of", "points"]

NOW = datetime(2026, 11, 20, 18, tzinfo=UTC)
"""When the questions of the sample news are asked: what "yesterday" means in them."""
ALL = "all"
_ANSWER_TOKENS = 96
_WAIT_S = 600.0
_UPDATES = 3
_NAMES = (("Jorin", "Askelbrand", "Velmoth"), ("Petra", "Oskerlind", "Harrowgate"), ("Mats", "Ellerton", "Brackwater"))
_REFUSES = re.compile(
    r"\bi (?:do not|don't|cannot|can't|could not|couldn't) (?:know|find|answer|provide|determine)\b"
    r"|\b(?:not|never) (?:mentioned|provided|specified|stated|known|given|available|disclosed)\b"
    r"|\b(?:do|does|did)(?: not|n't) (?:say|mention|provide|specify|state|contain|include|give|tell)\b"
    r"|\bno (?:information|mention|details)\b"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A question with its answer by one model: whether it tells the facts, refuses, names the right source first, and what
    it was read from; `stale`: it tells what an update has changed, `all_sources`: all articles that tell the facts were read."""

    asked: AskedQuestion
    answer: str
    told: bool
    refused: bool
    right_source: bool
    read_text: bool
    grounded: bool
    stale: bool = False
    all_sources: bool = False


@dataclass(frozen=True, slots=True)
class AskPoint:
    """One model's shares on one kind of question (or all), in per cent; None where there is nothing to take a share of.

    `told`, `right_source` and `all_sources` are of the questions that articles answer; `refused` of all; `refusing_precision` are
    refusals that are right, `refusing_recall` questions without an answer that are refused.
    """

    system: str
    kind: str
    questions: int
    told: float | None
    right_source: float | None
    all_sources: float | None
    refused: float | None
    refusing_precision: float | None
    refusing_recall: float | None
    read_text: float | None
    grounded: float | None
    stale: float | None


def ask_all(
    settings: Settings,
    model: CMT,
    bank: Path,
    asked: Sequence[AskedQuestion],
    name: ModelName,
    stale: Sequence[Sequence[str]] = (),
) -> list[Judged]:
    """Asks all questions of the engine on a bank; `stale` are each question's old answers. Raises ServiceError."""
    changed = settings.model_copy(update={"bank": settings.bank.model_copy(update={"uri": str(bank)})})
    scheduler = load_answerer(changed, lambda _: model, open_bank, Metrics(), clock=lambda: NOW)
    limits = Limits(max_new_tokens=_ANSWER_TOKENS, deadline_s=_WAIT_S)
    try:
        boxes = [_Box(scheduler, _request(one, name), limits) for one in asked]
        replies = [box.reply() for box in boxes]
    finally:
        scheduler.stop()
    old = stale or [()] * len(asked)
    return [_judged(one, reply, before) for one, reply, before in zip(asked, replies, old, strict=True)]


def models_of(names: str) -> list[ModelName]:
    """Model ids, comma-separated. Raises SettingsError for one that does not exist."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in MODELS:
            raise SettingsError(f"model {name!r} does not exist: {', '.join(MODELS)}")
    return [name for name in MODELS if name in wanted]


def points(name: str, judged: Sequence[Judged]) -> list[AskPoint]:
    """The shares of each kind, and of all."""
    kinds = dict.fromkeys([*(one.asked.kind for one in judged), ALL])
    return [_point(name, kind, [one for one in judged if kind in (ALL, one.asked.kind)]) for kind in kinds]


def left_out(
    items: Iterable[Document | Tombstone], asked: Sequence[AskedQuestion], every: int
) -> tuple[list[Document | Tombstone], list[AskedQuestion]]:
    """The items without every n-th article, and the questions, those about it being without an answer now."""
    kept = list(items)
    ids = sorted({one.id for one in kept})
    gone = set(ids[::every])
    questions = [
        replace(one, kind="left out", facts=(), article_ids=()) if gone & set(one.article_ids) else one for one in asked
    ]
    return [one for one in kept if one.id not in gone], questions


def made_updates(
    items: Sequence[Document | Tombstone], questions: Sequence[tuple[str, str, str]]
) -> tuple[list[Document], list[AskedQuestion], list[list[str]]]:
    """Three updates each of the articles of (question, answer, article): in each the answer is another name or number.

    Gives the new versions in their order, the questions with the last answers, and each one's old answers.
    """
    latest = {one.id: one for one in items if isinstance(one, Document)}
    made: list[Document] = []
    asked: list[AskedQuestion] = []
    stale: list[list[str]] = []
    for question, answer, article in questions:
        document = latest.get(article)
        values = [_another(answer, round_) for round_ in range(_UPDATES)]
        if document is None or answer not in document.text or None in values:
            continue
        before = answer
        for value in map(str, values):
            document = replace(
                document,
                text=document.text.replace(before, value),
                title=document.title.replace(before, value),
                published_at=NOW,
            )
            made.append(document)
            before = value
        latest[article] = document
        asked.append(AskedQuestion("updated", question, ((str(values[-1]),),), (article,)))
        stale.append([answer, *map(str, values[:-1])])
    return made, asked, stale


class _Box:
    """One question on its way."""

    def __init__(self, scheduler: Answerer, request: ChatRequest, limits: Limits) -> None:
        self._ended = threading.Event()
        self._last: Event | None = None
        scheduler.submit(request.ask(limits), self._take)

    def reply(self) -> Reply:
        if not self._ended.wait(_WAIT_S):
            raise ServiceError("the engine gave no answer")
        if isinstance(self._last, Failure):
            raise ServiceError(f"a question got no answer: {self._last.message}")
        assert isinstance(self._last, Reply)
        return self._last

    def _take(self, event: Event) -> None:
        if isinstance(event, Reply | Failure):
            self._last = event
            self._ended.set()


def _request(asked: AskedQuestion, name: ModelName) -> ChatRequest:
    messages = []
    for question, answer in asked.earlier:
        messages += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return ChatRequest(model=name, messages=[*messages, Message(role="user", content=asked.question)])


def _judged(asked: AskedQuestion, reply: Reply, stale: Sequence[str]) -> Judged:
    best = max(reply.sources, key=lambda source: source.weight or 0.0, default=None)
    refused = not reply.known or _REFUSES.search(reply.answer.lower().replace("’", "'")) is not None
    return Judged(
        asked,
        reply.answer,
        told=bool(asked.facts) and not refused and contains_facts(reply.answer, asked.facts),
        refused=refused,
        right_source=best is not None and best.doc_id in asked.article_ids,
        read_text=reply.read == "text",
        grounded=bool(reply.grounded),
        stale=any(contains_facts(reply.answer, [[old]]) for old in stale),
        all_sources=set(asked.article_ids) <= {source.doc_id for source in reply.sources},
    )


def _point(name: str, kind: str, judged: Sequence[Judged]) -> AskPoint:
    answerable = [one for one in judged if one.asked.article_ids]
    absent = [one for one in judged if not one.asked.article_ids]
    refused = [one for one in judged if one.refused]
    answered = [one for one in judged if not one.refused]
    return AskPoint(
        system=name,
        kind=kind,
        questions=len(judged),
        told=_share(answerable, lambda one: one.told),
        right_source=_share(answerable, lambda one: one.right_source),
        all_sources=_share(answerable, lambda one: one.all_sources),
        refused=_share(judged, lambda one: one.refused),
        refusing_precision=_share(refused, lambda one: not one.asked.article_ids),
        refusing_recall=_share(absent, lambda one: one.refused),
        read_text=_share(judged, lambda one: one.read_text),
        grounded=_share(answered, lambda one: one.grounded),
        stale=_share(judged, lambda one: one.stale),
    )


def _share(those: Sequence[Judged], has: Callable[[Judged], bool]) -> float | None:
    return round(100 * sum(map(has, those)) / len(those), 1) if those else None


def _another(answer: str, round_: int) -> str | None:
    """Another name or number of the same form; None for words that are neither."""
    if any(char.isdigit() for char in answer):
        digits = [str((int(char) + 3 * (round_ + 1)) % 9 + 1) if char.isdigit() else char for char in answer]
        return "".join(digits)
    words = answer.split()
    if not all(word[0].isupper() for word in words):
        return None
    names = _NAMES[round_]
    return " ".join(names[:2] if len(words) > 1 else names[2:])
