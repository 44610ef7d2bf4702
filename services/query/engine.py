"""Answers batches of questions from the memory bank: retrieve, group by mode, generate; no Ray, no HTTP.

1. group the questions that need the bank by (top_k, namespace, as_of), embed and search each group
2. group all questions by (mode, max_new_tokens) and generate each group in one pass
3. a group that raises is run again one question at a time, so a bad question fails alone
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from services.errors import BankError
from services.metrics import Metrics
from services.query.ports import Answer, AnsweringModel, BankStats, DocumentInfo, Hit, MemoryReader

__all__ = ["MODELS", "Answerer", "Ask", "Failure", "Found", "ModelName", "Overview", "Reply", "Source"]

ModelName = Literal["cmt", "cmt-rag", "cmt-closed"]
MODELS: tuple[ModelName, ...] = ("cmt", "cmt-rag", "cmt-closed")

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """One question; `top_k` None means the service's default, `as_of` None means now."""

    question: str
    model: ModelName = "cmt"
    top_k: int | None = None
    namespace: str = "default"
    as_of: datetime | None = None
    max_new_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Source:
    """A document window that an answer was read from; `weight` is its share of the attention, None where unknown."""

    doc_id: str
    chunk_no: int
    title: str | None
    url: str | None
    source: str | None
    published_at: datetime | None
    score: float
    weight: float | None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its sources; the times are those of the batch it was made in."""

    answer: str
    sources: tuple[Source, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    model_id: str
    bank_version: int | None
    retrieve_ms: float
    generate_ms: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one question got no answer: it is at fault, the bank can't be read, or the engine broke."""

    kind: Literal["question", "bank", "internal"]
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the bank holds for one question, best hit first."""

    hits: tuple[Hit, ...] = ()
    bank_version: int | None = None
    retrieve_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Overview:
    """The bank at a glance."""

    stats: BankStats
    latest: tuple[DocumentInfo, ...]
    model_id: str


_Work = tuple[Ask, Found]


class Answerer:
    """Answers questions with `model` from what `bank` holds; calls that use the model must come from one thread."""

    def __init__(
        self, model: AnsweringModel, bank: MemoryReader, *, top_k: int | None = None, metrics: Metrics | None = None
    ) -> None:
        self._model = model
        self._bank = bank
        self._top_k = top_k or model.default_top_k
        self._metrics = metrics or Metrics()

    def answer(self, asks: Sequence[Ask]) -> list[Reply | Failure]:
        """One Reply or Failure per question, in order; never raises for a question's sake."""
        self._metrics.observe("cmt_query_batch_questions", len(asks))
        found = _in_groups(asks, self._retrieval_key, self._retrieve)
        todo = [(ask, one) for ask, one in zip(asks, found, strict=True) if isinstance(one, Found)]
        replies = iter(_in_groups(todo, _generation_key, self._generate))
        return [one if isinstance(one, Failure) else next(replies) for one in found]

    def search(self, ask: Ask) -> Found | Failure:
        """What the bank holds for `ask.question`, without an answer."""
        return _in_groups([ask], self._retrieval_key, self._retrieve)[0]

    def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its `n` latest documents; needs no model, so any thread may call it."""
        try:
            return Overview(
                self._bank.stats(), tuple(self._bank.latest(n, namespace)) if n else (), self._model.model_id
            )
        except BankError as error:
            return Failure("bank", str(error))

    def _retrieval_key(self, ask: Ask) -> Hashable:
        return ask.model != "cmt-closed" and (ask.top_k or self._top_k, ask.namespace, ask.as_of)

    def _retrieve(self, asks: Sequence[Ask]) -> list[Found]:
        first = asks[0]
        if first.model == "cmt-closed":
            return [Found() for _ in asks]
        started = time.perf_counter()
        keys = self._model.query_keys([ask.question for ask in asks])  # (B, d_key)
        hits = self._bank.search(keys, first.top_k or self._top_k, first.namespace, first.as_of)
        version = self._bank.stats().version
        seconds = time.perf_counter() - started
        self._metrics.observe("cmt_query_retrieve_seconds", seconds)
        return [Found(tuple(found), version, seconds * 1e3) for found in hits]

    def _generate(self, batch: Sequence[_Work]) -> list[Reply]:
        started = time.perf_counter()
        answers = self._read(batch)
        seconds = time.perf_counter() - started
        self._metrics.observe("cmt_query_generate_seconds", seconds)
        return [self._reply(work, answer, seconds * 1e3) for work, answer in zip(batch, answers, strict=True)]

    def _read(self, batch: Sequence[_Work]) -> Sequence[Answer]:
        questions, limit = [ask.question for ask, _ in batch], batch[0][0].max_new_tokens
        match _mode(batch[0]):
            case "cmt":
                memories = [[hit.memory for hit in found.hits] for _, found in batch]
                return self._model.answer(questions, memories, max_new_tokens=limit)
            case "cmt-rag":
                passages = [[_passage(hit) for hit in found.hits] for _, found in batch]
                return self._model.answer_rag(questions, passages, max_new_tokens=limit)
            case _:
                return self._model.answer_closed(questions, max_new_tokens=limit)

    def _reply(self, work: _Work, answer: Answer, generate_ms: float) -> Reply:
        ask, found = work
        self._metrics.count("cmt_query_prompt_tokens_total", answer.prompt_tokens, model=ask.model)
        self._metrics.count("cmt_query_completion_tokens_total", answer.completion_tokens, model=ask.model)
        alone = ask.model != "cmt-closed" and not found.hits
        return Reply(
            answer=answer.text,
            sources=_sources(found.hits, answer.weights),
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            finish_reason=answer.finish_reason,
            model_id=self._model.model_id,
            bank_version=found.bank_version,
            retrieve_ms=found.retrieve_ms,
            generate_ms=generate_ms,
            notes=("the bank holds nothing for this question: answered without memory",) if alone else (),
        )


def _passage(hit: Hit) -> str:
    """The text that the compressor read when it wrote this hit's memory: a fair rival reads the same."""
    return f"{hit.title}\n{hit.text}" if hit.title else hit.text


def _mode(work: _Work) -> ModelName:
    """The mode that really runs: with nothing found, the LLM answers alone (and the reply says so)."""
    ask, found = work
    return ask.model if found.hits else "cmt-closed"


def _generation_key(work: _Work) -> Hashable:
    return _mode(work), work[0].max_new_tokens


def _sources(hits: Sequence[Hit], weights: Sequence[float]) -> tuple[Source, ...]:
    known: Sequence[float | None] = weights if len(weights) == len(hits) else [None] * len(hits)
    return tuple(
        Source(hit.doc_id, hit.chunk_no, hit.title, hit.url, hit.source, hit.published_at, float(hit.score), weight)
        for hit, weight in zip(hits, known, strict=True)
    )


def _in_groups(
    items: Sequence[T], key: Callable[[T], Hashable], run: Callable[[Sequence[T]], Sequence[R]]
) -> list[R | Failure]:
    """Runs items of equal key together and gives results in the items' order."""
    groups: dict[Hashable, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(key(item), []).append(i)
    results: dict[int, R | Failure] = {}
    for members in groups.values():
        results.update(zip(members, _isolated([items[i] for i in members], run), strict=True))
    return [results[i] for i in range(len(items))]


def _isolated(group: Sequence[T], run: Callable[[Sequence[T]], Sequence[R]]) -> list[R | Failure]:
    """Runs a group; when it raises, runs its members one by one so that only the bad ones fail."""
    try:
        results = run(group)
        if len(results) != len(group):
            raise RuntimeError(f"{len(results)} results came back for {len(group)} questions")
        return list(results)
    except BankError as error:  # the bank is down for all of them: asking again one by one would only wait longer
        return [Failure("bank", str(error)) for _ in group]
    except Exception as error:  # noqa: BLE001 - the one loop that turns any failure into this question's own
        if len(group) > 1:
            return [one for item in group for one in _isolated([item], run)]
        _log.warning(
            "a question failed: %s: %s", type(error).__name__, error, exc_info=not isinstance(error, ValueError)
        )
        kind: Literal["question", "internal"] = "question" if isinstance(error, ValueError) else "internal"
        return [Failure(kind, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}")]
