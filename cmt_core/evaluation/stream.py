"""The stream protocol: every document is compressed into the bank first, then all questions are asked against the full bank.

No document text reaches the LLM in the memory systems. All systems are asked the same questions with the same windows found.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cmt_core.data.qa import QAExample
from cmt_core.evaluation.bank import filled_bank, own_window
from cmt_core.evaluation.metrics import exact_match, f1, papers_exact_match
from cmt_core.evaluation.systems import System, SystemAnswer, system, system_at
from cmt_core.generation.query import MOST_CANDIDATES
from cmt_core.memory_bank import MemoryBank
from cmt_core.model import CMT
from cmt_core.retrieval.hybrid import RowHit
from cmt_core.retrieval.looks import most_read
from cmt_core.retrieval.ranking import HYBRID, Ranking

__all__ = ["Keep", "StreamScores", "evaluate_stream", "sample", "score_system"]

Keep = Callable[[str, int, Sequence[QAExample], Sequence[SystemAnswer]], None]
"""Called with a system's name, its k, the questions, and its answers to them."""


@dataclass(frozen=True, slots=True)
class StreamScores:
    """One system's figures. Shares are 0 to 100; `oracle_*` with the question's own document instead of retrieval.

    `answer_nats` is the log-loss per token of the first gold answer and its end, the mean over the questions.
    `vectors_per_document` and `bytes_per_document` are what the bank holds; `prompt_tokens` is how many tokens the LLM reads as
    text for a question (median); `seconds` is for all questions, without the own documents'. `read_text` are questions for which
    text was read, `grounded` answers that stand in the texts found, `garbled` those with a name or number that none of them has.
    Of a system that reads memories, `attended_first` are the questions whose own document has most of the LLM's attention,
    `attended` those whose own document has some, so that ψ has not left it out, and `among_sources` those whose own document is
    one of the k that were read most: where a learned look chooses among more, it may not be one of the k found first.
    """

    system: str
    k: int
    questions: int
    documents: int
    em: float
    f1: float
    papers_em: float
    answer_nats: float
    oracle_em: float | None
    oracle_f1: float | None
    oracle_nats: float | None
    recall_at_1: float
    recall_at_k: float
    vectors_per_document: float
    bytes_per_document: float
    prompt_tokens: int
    seconds: float
    read_text: float
    grounded: float
    garbled: float
    attended_first: float | None
    attended: float | None
    among_sources: float | None


def evaluate_stream(
    model: CMT,
    examples: Iterable[QAExample],
    *,
    systems: Sequence[str],
    questions: int = 300,
    documents: int | None = None,
    k: int = 1,
    seed: int = 0,
    max_new_tokens: int = 24,
    ranking: Ranking = HYBRID,
    single_context: CMT | None = None,
    spelled: bool = True,
    candidates: int = MOST_CANDIDATES,
    report: Callable[[str], None] = lambda line: None,
    keep: Keep | None = None,
) -> Iterator[StreamScores]:
    """Scores each system on `questions` seeded questions against a bank of all documents (or `documents` of them).

    A system reads `k` documents a question, one that is named `NAME@K` reads K. `single_context` is the paper's checkpoint for
    the system of that name; `spelled` and `candidates` as in `system`. Each system's scores come when it is done, after `keep`
    got its answers.
    Documents are compressed where a system reads memories: all of them first, or where few questions are asked of many those that
    are read, when they are.
    Raises ConfigError for a system that is not known or that the checkpoint can't be, before anything slow.
    """
    named = [system_at(spec, k) for spec in systems]
    known = {
        name: system(name, model, single_context, spelled=spelled, candidates=candidates)
        for name in dict.fromkeys(name for name, _ in named)
    }
    chosen, asked = sample(list(examples), questions, documents, seed)
    started = time.perf_counter()
    remembers = any(one.reads == "memory" for one in known.values())
    all_read = remembers and len(asked) * (1 + max(own_k for _, own_k in named)) >= len(chosen)
    bank = filled_bank(model, chosen, ranking, compress=all_read)
    done = "compressed" if all_read else "indexed"
    report(f"{len(bank.rows)} windows of {len(chosen)} documents {done} in {time.perf_counter() - started:.0f} s")
    return (score_system(known[name], bank, asked, own_k, max_new_tokens, report, keep) for name, own_k in named)


def sample(
    examples: Sequence[QAExample], questions: int, documents: int | None, seed: int
) -> tuple[list[tuple[str, str, str]], list[QAExample]]:
    """Seeded documents (doc_id, title, text), all of them when `documents` is None, and questions about them."""
    texts = {row.doc_id: (row.title, row.text) for row in examples}
    rng = random.Random(seed)
    chosen = rng.sample(sorted(texts), min(documents or len(texts), len(texts)))
    kept = set(chosen)
    asked = [row for row in examples if row.doc_id in kept]
    return [(doc_id, *texts[doc_id]) for doc_id in chosen], rng.sample(asked, min(questions, len(asked)))


def score_system(
    compared: System,
    bank: MemoryBank,
    asked: Sequence[QAExample],
    k: int,
    max_new_tokens: int = 24,
    report: Callable[[str], None] = lambda line: None,
    keep: Keep | None = None,
) -> StreamScores:
    """One system's scores on the questions `asked` of `bank`."""
    bank = bank.read_by(compared.model)
    started = time.perf_counter()
    found = bank.nearest([row.question for row in asked], compared.finds(k))
    seconds = time.perf_counter() - started
    answers = compared.answers(bank, asked, found, max_new_tokens, k)
    if keep is not None:
        keep(compared.name, k, asked, answers)
    oracle = None
    if compared.reads != "nothing":
        own = [[RowHit(own_window(bank, row), 1.0)] for row in asked]
        oracle = compared.answers(bank, asked, own, max_new_tokens)
    hits = [
        [bank.rows[one.row].entry.doc_id == example.doc_id for one in rows]
        for rows, example in zip(found, asked, strict=True)
    ]
    of_memories = compared.reads == "memory"
    attended = (
        [_attended(one.answer.weights, row) for one, row in zip(answers, hits, strict=True)] if of_memories else []
    )
    stored = bank.made if of_memories else []
    scores = StreamScores(
        system=compared.name,
        k=0 if compared.reads == "nothing" else k,
        questions=len(asked),
        documents=len(bank),
        em=_mean(exact_match, answers, asked),
        f1=_mean(f1, answers, asked),
        papers_em=_mean(papers_exact_match, answers, asked),
        answer_nats=_nats(answers),
        oracle_em=None if oracle is None else _mean(exact_match, oracle, asked),
        oracle_f1=None if oracle is None else _mean(f1, oracle, asked),
        oracle_nats=None if oracle is None else _nats(oracle),
        recall_at_1=round(100 * sum(row[0] for row in hits) / len(hits), 2),
        recall_at_k=round(100 * sum(any(row[:k]) for row in hits) / len(hits), 2),
        vectors_per_document=_per_document(bank, [bank.model.vectors_of(memory) for memory in stored]),
        bytes_per_document=_per_document(bank, [len(memory.code) for memory in stored]),
        prompt_tokens=sorted(one.answer.prompt_tokens for one in answers)[len(answers) // 2],
        seconds=round(seconds + sum(one.seconds for one in answers), 1),
        read_text=_share([one.read_text for one in answers]),
        grounded=_share([one.grounded for one in answers]),
        garbled=_share([one.garbled for one in answers]),
        attended_first=_share([first for first, _ in attended]) if of_memories else None,
        attended=_share([some for _, some in attended]) if of_memories else None,
        among_sources=_share(
            [
                any(row[at] for at in most_read(one.answer.weights, k, one.answer.together))
                for one, row in zip(answers, hits, strict=True)
            ]
        )
        if of_memories
        else None,
    )
    own_document = "" if oracle is None else f", own document EM {scores.oracle_em:.1f} F1 {scores.oracle_f1:.1f}"
    report(f"{compared.name} k={scores.k}: EM {scores.em:.1f} F1 {scores.f1:.1f}{own_document}")
    return scores


def _attended(weights: Sequence[float], own: Sequence[bool]) -> tuple[bool, bool]:
    """Whether a question's own documents, among those with these shares of attention, have the largest share, and any."""
    best = max(range(len(weights)), key=weights.__getitem__)
    return own[best], any(weight > 0 for weight, is_own in zip(weights, own, strict=True) if is_own)


def _per_document(bank: MemoryBank, of_windows: Sequence[int]) -> float:
    """Mean per document of a figure of the windows that were compressed."""
    per_window = sum(of_windows) / max(1, len(of_windows))
    return round(per_window * len(bank.rows) / len(bank), 1)


def _mean(
    measure: Callable[[str, Sequence[str]], float], answers: Sequence[SystemAnswer], asked: Sequence[QAExample]
) -> float:
    total = sum(measure(one.answer.text, row.answers) for one, row in zip(answers, asked, strict=True))
    return round(100 * total / len(asked), 2)


def _share(those: Sequence[bool]) -> float:
    return round(100 * sum(those) / len(those), 2)


def _nats(answers: Sequence[SystemAnswer]) -> float:
    return round(sum(one.gold_nats for one in answers) / len(answers), 4)
