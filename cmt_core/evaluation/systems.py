"""The systems that are compared on one bank with one frozen LLM; each answers from the rows that retrieval found for it.

`select`, `single_context` and `stack` read memories with that aggregation ψ. `auto` is `select` and, where its answer does not
stand in its sources, the text of the source that was attended to most: what the service's model `cmt` does. `rag_prefix` reads
the same documents' text behind the prefix that was tuned on text (in a chat checkpoint: at the memories' place in the template).
`rag_likely` reads the text of those documents that `select` would read: the same filter, and the same look at the question's
likelihood behind each memory. Where answers are a few words, all of these spell theirs from the texts of what they read, as the
service does (`auto` those from text), and take the likeliest of several candidates. `rag_bare` reads the text in the LLM's own
chat prompt. `closed` reads nothing, in the chat prompt, and `closed_prefix` nothing behind the reading prefix: it knows what an
answer looks like.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cmt_core.data.qa import QAExample
from cmt_core.errors import ConfigError
from cmt_core.generation.asking import QuestionBatch
from cmt_core.generation.query import MOST_CANDIDATES
from cmt_core.grounded import TextReads, ground, of_most_read, read_again, text_reads
from cmt_core.memory_bank import MemoryBank
from cmt_core.model import CMT, Answer
from cmt_core.retrieval.complement import completed_by
from cmt_core.retrieval.hybrid import RowHit
from cmt_core.text.prompt import SHORT_ANSWERS

__all__ = ["SYSTEMS", "System", "SystemAnswer", "system", "system_at"]

SYSTEMS = (
    "select",
    "auto",
    "single_context",
    "stack",
    "rag_prefix",
    "rag_likely",
    "rag_bare",
    "closed",
    "closed_prefix",
)

_BATCH = 8

Ask = Callable[[MemoryBank, Sequence[str], Sequence[Sequence[RowHit]]], QuestionBatch]
_Key = tuple[
    str, str, tuple[str, ...], tuple[float, ...], int
]  # question, gold, windows read, their scores, longest answer


@dataclass(frozen=True, slots=True)
class SystemAnswer:
    """A system's answer, the seconds it took, and the log-loss (nats per token) of the question's first gold answer.

    `read_text`: text was read for it. `grounded`, `garbled`: it stands in the texts of the documents found, or has a name, a
    number or a quotation that none of them has.
    """

    answer: Answer
    seconds: float
    gold_nats: float
    read_text: bool = False
    grounded: bool = False
    garbled: bool = False


@dataclass(frozen=True, slots=True)
class System:
    """Answers questions from rows of a bank of `model`'s memories; `reads` is what of them reaches the LLM.

    An answer is made once: to the same question from the same windows it is the same one again, with the seconds it took. So
    a system belongs to the banks of one checkpoint's memories.
    """

    name: str
    model: CMT
    reads: str  # memory, text or nothing
    ask: Ask
    in_doubt: Callable[[Sequence[str], TextReads], QuestionBatch] | None = (
        None  # what reads text where memory is in doubt
    )
    spelled: bool = False
    candidates: int = 1
    _made: dict[_Key, SystemAnswer] = field(default_factory=dict)

    def finds(self, k: int) -> int:
        """How many rows of the bank it wants of a question to read k of them."""
        return self.model.looked_at(k) if self.reads == "memory" or self.name == "rag_likely" else k

    def answers(
        self,
        bank: MemoryBank,
        asked: Sequence[QAExample],
        rows: Sequence[Sequence[RowHit]],
        max_new_tokens: int,
        k: int | None = None,
    ) -> list[SystemAnswer]:
        """One answer a question from its own rows of the bank, of which k are its sources (None: all)."""
        keys = [self._key(bank, *each, max_new_tokens) for each in zip(asked, rows, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._made]
        new.sort(key=lambda i: sum(map(len, keys[i][2])))  # texts of like length are padded least
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            made = self._answered(bank, [asked[i] for i in batch], [rows[i] for i in batch], max_new_tokens, k)
            self._made.update(zip([keys[i] for i in batch], made, strict=True))
        return [self._made[key] for key in keys]

    def _answered(
        self,
        bank: MemoryBank,
        asked: Sequence[QAExample],
        rows: Sequence[Sequence[RowHit]],
        max_new_tokens: int,
        k: int | None,
    ) -> list[SystemAnswer]:
        model = bank.model if self.reads == "memory" else self.model
        questions = [row.question for row in asked]
        texts = [[bank.rows[one.row].window.reading for one in row] for row in rows]
        sources = texts if self.spelled and self.in_doubt is None else ()
        write = partial(_written, model, max_new_tokens=max_new_tokens, candidates=self.candidates)
        answers, nats, took = write(lambda: self.ask(bank, questions, rows), asked, sources)
        doubted: list[int] = []
        if self.in_doubt is not None:
            started = time.perf_counter()
            reads = text_reads(model, questions, *self._sources(answers, texts, k))
            took, doubted = took + time.perf_counter() - started, reads.rows
        if doubted and self.in_doubt is not None:
            ask, own = self.in_doubt, [asked[row] for row in doubted]
            sources = reads.texts if self.spelled else ()
            again, losses, more = write(lambda: ask(questions, reads), own, sources)
            for row, begun, answer, loss in zip(doubted, reads.begun, again, losses, strict=True):
                whole = f"{begun} {answer.text}".strip()
                tokens = answer.prompt_tokens + answers[row].prompt_tokens
                answers[row] = replace(answer, text=whole, weights=answers[row].weights, prompt_tokens=tokens)
                nats[row] = loss
            took += more
        made = [
            SystemAnswer(answer, took / len(asked), loss, row in doubted)
            for row, (answer, loss) in enumerate(zip(answers, nats, strict=True))
        ]
        judged = zip(questions, made, *self._sources(answers, texts, k), strict=True)
        return [self._judged(model, question, one, answer, own) for question, one, answer, own in judged]

    def _sources(
        self, answers: Sequence[Answer], texts: Sequence[Sequence[str]], k: int | None
    ) -> tuple[list[Answer], list[list[str]]]:
        """Answers and texts as of the k documents of each that are its sources."""
        if k is None or self.reads != "memory":
            return list(answers), [list(own) for own in texts]
        most = [of_most_read(answer, k) for answer in answers]
        return [one for one, _ in most], [[own[at] for at in read] for own, (_, read) in zip(texts, most, strict=True)]

    def _judged(
        self, model: CMT, question: str, made: SystemAnswer, answer: Answer, texts: Sequence[str]
    ) -> SystemAnswer:
        """What was made with how it, as `answer` of its sources alone, stands in their texts."""
        if self.reads == "nothing":
            return made
        found = ground(model, question, answer, texts)
        read = made.read_text or self.reads == "text"
        return replace(made, read_text=read, grounded=found.grounded, garbled=found.garbled)

    def _key(self, bank: MemoryBank, asked: QAExample, rows: Sequence[RowHit], max_new_tokens: int) -> _Key:
        if self.reads == "nothing":
            return asked.question, asked.answers[0], (), (), max_new_tokens
        # scores say how likely a document is beside the others: none are needed for one alone, and text has no such weights
        weighed = self.reads == "memory" and len(rows) > 1
        scores = tuple(one.score for one in rows) if weighed else ()
        read = tuple(bank.rows[one.row].window.reading for one in rows)
        return asked.question, asked.answers[0], read, scores, max_new_tokens


def system_at(spec: str, k: int) -> tuple[str, int]:
    """Name and k of `NAME` (with the k of all systems) or `NAME@K`; raises ConfigError."""
    name, at, own = spec.partition("@")
    if not at:
        return name, k
    if not (own.isdigit() and int(own) > 0):
        raise ConfigError(f"{spec!r} is not SYSTEM@K with K a number of documents")
    return name, int(own)


def system(
    name: str,
    model: CMT,
    single_context: CMT | None = None,
    instructions: str = SHORT_ANSWERS,
    *,
    spelled: bool = True,
    candidates: int = MOST_CANDIDATES,
) -> System:
    """The system of that name around `model`, or around the paper's checkpoint `single_context`.

    `instructions` are the system message of every question; unless `spelled` answers of a few words are free, too. `candidates`
    as in `CMT.write`.

    Raises ConfigError for a name that is not known and for a system that the checkpoint can't be.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"system {name!r} is not known; known are {', '.join(SYSTEMS)}")
    if name == "single_context":
        return System(
            name,
            _of(single_context or model, name),
            "memory",
            _memory(instructions),
            spelled=spelled,
            candidates=candidates,
        )
    if name == "auto":
        model = _of(model, "select")
        return System(
            name,
            model,
            "memory",
            _memory(instructions),
            lambda asked, reads: read_again(model, asked, reads, instructions),
            spelled,
            candidates,
        )
    if name == "select":
        return System(name, _of(model, name), "memory", _memory(instructions), spelled=spelled, candidates=candidates)
    if name == "stack":
        return System(name, _stacked(model), "memory", _memory(instructions), spelled=spelled, candidates=candidates)
    if name in ("closed", "closed_prefix"):
        prefixed = name == "closed_prefix"
        return System(
            name,
            model,
            "nothing",
            lambda bank, asked, rows: model.ask_closed(asked, prefixed=prefixed, instructions=instructions),
        )
    if name == "rag_likely":
        return System(
            name,
            _of(model, "select"),
            "text",
            _likely_text(model, instructions),
            spelled=spelled,
            candidates=candidates,
        )
    if name == "rag_prefix":
        return System(
            name, model, "text", _text(model.ask_of_text, instructions), spelled=spelled, candidates=candidates
        )
    return System(name, model, "text", _text(model.ask_bare, instructions))


def _of(model: CMT, aggregation: str) -> CMT:
    if model.config.aggregation != aggregation:
        raise ConfigError(
            f"system {aggregation!r} needs a checkpoint with that aggregation; this one has {model.config.aggregation!r}"
        )
    return model


def _stacked(model: CMT) -> CMT:
    """The same memories, read without selection."""
    if model.config.aggregation == "single_context":
        raise ConfigError("memories of a single_context checkpoint can't be stacked")
    stacked = copy.copy(model)
    stacked.select = None
    return stacked


def _written(
    model: CMT,
    read: Callable[[], QuestionBatch],
    asked: Sequence[QAExample],
    sources: Sequence[Sequence[str]],
    *,
    max_new_tokens: int,
    candidates: int,
) -> tuple[list[Answer], list[float], float]:
    """Answers to what `read` gives, the log-loss of the first gold ones, and the seconds that the answers took."""
    started = time.perf_counter()
    batch = read()
    reading = time.perf_counter() - started
    nats = model.log_loss(batch, [row.answers[0] for row in asked])
    started = time.perf_counter()
    answers = model.write(batch, max_new_tokens, sources, candidates)
    return answers, nats, reading + time.perf_counter() - started


def _memory(instructions: str) -> Ask:
    def ask(bank: MemoryBank, asked: Sequence[str], rows: Sequence[Sequence[RowHit]]) -> QuestionBatch:
        codes = bank.codes([[one.row for one in row] for row in rows])
        together = _completed_by(bank, asked, rows)
        return bank.model.ask(asked, codes, [[one.score for one in row] for row in rows], instructions, together)

    return ask


def _completed_by(bank: MemoryBank, asked: Sequence[str], rows: Sequence[Sequence[RowHit]]) -> list[list[int | None]]:
    return [
        completed_by(question, [bank.rows[one.row].window.reading for one in row])
        for question, row in zip(asked, rows, strict=True)
    ]


def _text(ask: Callable[[Sequence[str], Sequence[Sequence[str]], str], QuestionBatch], instructions: str) -> Ask:
    return lambda bank, asked, rows: ask(
        asked, [[bank.rows[one.row].window.reading for one in row] for row in rows], instructions
    )


def _likely_text(model: CMT, instructions: str) -> Ask:
    def ask(bank: MemoryBank, asked: Sequence[str], rows: Sequence[Sequence[RowHit]]) -> QuestionBatch:
        codes = bank.codes([[one.row for one in row] for row in rows])
        scores = [[one.score for one in row] for row in rows]
        kept = model.likely(asked, codes, scores, _completed_by(bank, asked, rows))
        texts = [
            [bank.rows[row[place].row].window.reading for place in own] for row, own in zip(rows, kept, strict=True)
        ]
        return model.ask_of_text(asked, texts, instructions)

    return ask
