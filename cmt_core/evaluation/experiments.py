"""The paper's experiments on one checkpoint: what happens to a fixed set of questions while the bank around them changes.

retention    the bank grows, in the stream's order
robustness   a growing share of the bank has nothing to do with any question
scaling      retrieval and reading from 50 to 50,000 documents: accuracy and time
Source: CMT (arXiv 2412.07393), section 4.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from cmt_core.data.qa import QAExample
from cmt_core.evaluation.bank import filled_bank
from cmt_core.evaluation.stream import StreamScores, score_system
from cmt_core.evaluation.systems import system
from cmt_core.memory_bank import MemoryBank
from cmt_core.model import CMT

__all__ = ["Point", "retention", "robustness", "scaling"]

Report = Callable[[str], None]
Document = tuple[str, str, str]  # doc_id, title, text


@dataclass(frozen=True, slots=True)
class Point:
    """One system's scores at one setting `x` (documents in the bank, or the irrelevant share in per cent).

    `f1_kept` is F1 in per cent of the first setting's; `search_ms` the median time to find k windows for one question.
    """

    x: float
    system: str
    documents: int
    em: float
    f1: float
    f1_kept: float
    oracle_f1: float | None
    recall_at_1: float
    recall_at_k: float
    search_ms: float
    seconds: float


def retention(
    model: CMT,
    examples: Sequence[QAExample],
    sizes: Sequence[int],
    *,
    systems: Sequence[str],
    questions: int,
    k: int,
    seed: int = 0,
    report: Report = lambda line: None,
) -> list[Point]:
    """Asks the same questions, all of the first `sizes[0]` documents, while the bank grows to the further sizes."""
    documents = _documents(examples, seed)[: max(sizes)]
    bank = filled_bank(model, documents)
    first = {doc_id for doc_id, _, _ in documents[: sizes[0]]}
    asked = _asked(examples, first, questions, seed)
    parts = [(float(size), {doc_id for doc_id, _, _ in documents[:size]}) for size in sizes]
    return _points(model, bank, parts, asked, systems, k, report)


def robustness(
    model: CMT,
    examples: Sequence[QAExample],
    shares: Sequence[float],
    *,
    relevant: int,
    filler: Sequence[Document] = (),
    systems: Sequence[str],
    questions: int,
    k: int,
    seed: int = 0,
    report: Report = lambda line: None,
) -> list[Point]:
    """Asks about `relevant` documents while the given shares (0 to below 1) of the bank are documents nobody asks about.

    Those are `filler`, or the set's own others, which are often of the same subject as those asked about.
    """
    documents = _documents(examples, seed)
    own, others = documents[:relevant], list(filler) or documents[relevant:]
    added = [min(len(others), round(relevant * share / (1 - share))) for share in shares]
    bank = filled_bank(model, own + others[: max(added)])
    asked = _asked(examples, {doc_id for doc_id, _, _ in own}, questions, seed)
    parts = [
        (100 * share, {doc_id for doc_id, _, _ in own + others[:count]})
        for share, count in zip(shares, added, strict=True)
    ]
    return _points(model, bank, parts, asked, systems, k, report)


def scaling(
    model: CMT,
    examples: Sequence[QAExample],
    sizes: Sequence[int],
    *,
    filler: Iterable[Document] = (),
    systems: Sequence[str],
    questions: int,
    k: int,
    seed: int = 0,
    report: Report = lambda line: None,
) -> list[Point]:
    """Asks about the first `sizes[0]` documents in banks of the given sizes.

    When the set's own are used up `filler` follows, each window of an article as a document of its own: so all are about as long.
    """
    documents = list(islice(chain(_documents(examples, seed), _passages(model, filler)), max(sizes)))
    bank = filled_bank(model, documents)
    asked = _asked(examples, {doc_id for doc_id, _, _ in documents[: sizes[0]]}, questions, seed)
    parts = [(float(size), {doc_id for doc_id, _, _ in documents[:size]}) for size in sizes if size <= len(documents)]
    return _points(model, bank, parts, asked, systems, k, report)


def _points(
    model: CMT,
    bank: MemoryBank,
    parts: Sequence[tuple[float, set[str]]],
    asked: Sequence[QAExample],
    systems: Sequence[str],
    k: int,
    report: Report,
) -> list[Point]:
    compared = [system(name, model) for name in systems]
    first: dict[str, float] = {}
    points: list[Point] = []
    for x, doc_ids in parts:
        part = bank.part(doc_ids)
        search_ms = _search_ms(part, [row.question for row in asked[:32]], k)
        for one in compared:
            scores = score_system(one, part, asked, k)
            start = first.setdefault(one.name, scores.f1)
            kept = round(100 * scores.f1 / start, 1) if start else 0.0
            points.append(_point(x, scores, kept, search_ms))
            report(f"{x:g}: {one.name} EM {scores.em:.1f} F1 {scores.f1:.1f} ({kept:.0f}% kept)")
    return points


def _point(x: float, scores: StreamScores, f1_kept: float, search_ms: float) -> Point:
    return Point(
        x=x,
        system=scores.system,
        documents=scores.documents,
        em=scores.em,
        f1=scores.f1,
        f1_kept=f1_kept,
        oracle_f1=scores.oracle_f1,
        recall_at_1=scores.recall_at_1,
        recall_at_k=scores.recall_at_k,
        search_ms=search_ms,
        seconds=scores.seconds,
    )


def _search_ms(bank: MemoryBank, questions: Sequence[str], k: int) -> float:
    keys = bank.model.query_keys(questions)
    times = []
    for row, question in enumerate(questions):
        started = time.perf_counter()
        bank.index.nearest([question], keys.vectors[row : row + 1], k, tokens=keys.tokens[row : row + 1])
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times), 3)


def _documents(examples: Sequence[QAExample], seed: int) -> list[Document]:
    texts = {row.doc_id: (row.doc_id, row.title, row.text) for row in examples}
    return random.Random(seed).sample([texts[doc_id] for doc_id in sorted(texts)], len(texts))


def _passages(model: CMT, articles: Iterable[Document]) -> Iterator[Document]:
    for doc_id, title, text in articles:
        for window in model.windows(title, text):
            yield f"{doc_id}#{window.number}", window.title, window.text


def _asked(examples: Sequence[QAExample], doc_ids: set[str], questions: int, seed: int) -> list[QAExample]:
    pool = [row for row in examples if row.doc_id in doc_ids]
    return random.Random(seed).sample(pool, min(questions, len(pool)))
