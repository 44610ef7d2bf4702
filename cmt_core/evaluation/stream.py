"""The stream protocol: every document is compressed into the bank first, then all questions are asked against the full bank.

No document text reaches the LLM in the memory systems. The bank here is a list and exact search, so that a score depends on
the method alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_core.data.qa import QAExample
from cmt_core.evaluation.metrics import exact_match, f1, papers_exact_match
from cmt_core.model import CMT, Memory
from cmt_core.windows import Window

__all__ = ["SYSTEMS", "StreamScores", "evaluate_stream"]

SYSTEMS = ("kv_code", "rag_prefix", "closed")
_BATCH = 8


@dataclass(frozen=True, slots=True)
class StreamScores:
    """One system's figures: shares are 0 to 100, `oracle_*` with the question's own document instead of retrieval."""

    system: str
    k: int
    questions: int
    documents: int
    em: float
    f1: float
    papers_em: float
    oracle_em: float | None
    oracle_f1: float | None
    recall_at_1: float
    recall_at_k: float
    bytes_per_window: int
    seconds: float


@dataclass(slots=True)
class _Bank:
    """All windows of the stream with their keys, memories, and the document each belongs to."""

    doc_ids: list[str]
    windows: list[Window]
    keys: NDArray[np.float32]
    memories: list[Memory]

    def nearest(self, keys: NDArray[np.float16], k: int) -> list[list[int]]:
        order = np.argsort(-(keys.astype(np.float32) @ self.keys.T), axis=1)[:, :k]
        return [[int(row) for row in rows] for rows in order]


def evaluate_stream(
    model: CMT,
    examples: Iterable[QAExample],
    *,
    systems: Sequence[str] = SYSTEMS,
    questions: int = 300,
    documents: int | None = None,
    k: int = 1,
    seed: int = 0,
    max_new_tokens: int = 24,
    report: Callable[[str], None] = lambda line: None,
) -> list[StreamScores]:
    """Scores each system on `questions` seeded questions against a bank of all documents (or `documents` of them)."""
    rows = list(examples)
    texts = {row.doc_id: (row.title, row.text) for row in rows}
    rng = random.Random(seed)
    chosen = rng.sample(sorted(texts), min(documents or len(texts), len(texts)))
    kept = set(chosen)
    asked = [row for row in rows if row.doc_id in kept]
    asked = rng.sample(asked, min(questions, len(asked)))
    started = time.perf_counter()
    bank = _fill(model, [(doc_id, *texts[doc_id]) for doc_id in chosen])
    report(
        f"{len(bank.windows)} windows of {len(chosen)} documents compressed in {time.perf_counter() - started:.0f} s"
    )
    return [_score(model, bank, asked, system, k, max_new_tokens, report) for system in systems]


def _fill(model: CMT, documents: Sequence[tuple[str, str, str]]) -> _Bank:
    doc_ids: list[str] = []
    windows: list[Window] = []
    for doc_id, title, text in documents:
        parts = model.windows(title, text)
        windows.extend(parts)
        doc_ids.extend([doc_id] * len(parts))
    return _Bank(doc_ids, windows, model.document_keys(windows).astype(np.float32), model.compress(windows))


def _score(
    model: CMT,
    bank: _Bank,
    asked: Sequence[QAExample],
    system: str,
    k: int,
    max_new_tokens: int,
    report: Callable[[str], None],
) -> StreamScores:
    started = time.perf_counter()
    k = 0 if system == "closed" else k
    found = bank.nearest(model.query_keys([row.question for row in asked]), max(1, k))
    answers = _answers(model, bank, asked, found, system, max_new_tokens)
    seconds = time.perf_counter() - started
    oracle = None
    if system != "closed":
        own = [[_own_window(bank, row)] for row in asked]
        oracle = _answers(model, bank, asked, own, system, max_new_tokens)
    hits = [[bank.doc_ids[row] == example.doc_id for row in rows] for rows, example in zip(found, asked, strict=True)]
    scores = StreamScores(
        system=system,
        k=k,
        questions=len(asked),
        documents=len(set(bank.doc_ids)),
        em=_mean(exact_match, answers, asked),
        f1=_mean(f1, answers, asked),
        papers_em=_mean(papers_exact_match, answers, asked),
        oracle_em=None if oracle is None else _mean(exact_match, oracle, asked),
        oracle_f1=None if oracle is None else _mean(f1, oracle, asked),
        recall_at_1=round(100 * sum(row[0] for row in hits) / len(hits), 2),
        recall_at_k=round(100 * sum(any(row) for row in hits) / len(hits), 2),
        bytes_per_window=model.memory_bytes if system == "kv_code" else 0,
        seconds=round(seconds, 1),
    )
    report(
        f"{system} k={k}: EM {scores.em:.1f} F1 {scores.f1:.1f}, own document {scores.oracle_em} / {scores.oracle_f1}"
    )
    return scores


def _own_window(bank: _Bank, example: QAExample) -> int:
    """The window of the question's document that holds an answer (its first window when none does)."""
    own = [row for row, doc_id in enumerate(bank.doc_ids) if doc_id == example.doc_id]
    holding = (r for r in own if any(a.lower() in bank.windows[r].text.lower() for a in example.answers))
    return next(holding, own[0])


def _answers(
    model: CMT, bank: _Bank, asked: Sequence[QAExample], found: list[list[int]], system: str, max_new_tokens: int
) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(asked), _BATCH):
        questions = [row.question for row in asked[start : start + _BATCH]]
        rows = found[start : start + _BATCH]
        if system == "kv_code":
            made = model.answer(
                questions, [[bank.memories[r].code for r in row] for row in rows], max_new_tokens=max_new_tokens
            )
        elif system == "rag_prefix":
            made = model.answer_rag(
                questions, [[bank.windows[r].reading for r in row] for row in rows], max_new_tokens=max_new_tokens
            )
        else:
            made = model.answer_closed(questions, max_new_tokens=max_new_tokens)
        answers.extend(answer.text for answer in made)
    return answers


def _mean(measure: Callable[[str, Sequence[str]], float], answers: Sequence[str], asked: Sequence[QAExample]) -> float:
    return round(
        100 * sum(measure(text, row.answers) for text, row in zip(answers, asked, strict=True)) / len(asked), 2
    )
