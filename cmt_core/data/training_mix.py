"""Chooses the training documents: openly licensed sources, how many of each, and which questions of them.

Only sources whose licence lets a trained checkpoint be shipped are in `OPEN_SOURCES`; the model card lists the same table.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmt_core.data.qa import QuestionedDocument

__all__ = ["OPEN_SOURCES", "Source", "choose_documents"]


@dataclass(frozen=True, slots=True)
class Source:
    """One training source: its licence, and limits that weight it."""

    licence: str
    max_documents: int | None = None
    max_questions: int = 4
    titled: bool = True


OPEN_SOURCES: dict[str, Source] = {
    "squad1.1-train-sample": Source("CC BY-SA 4.0"),
    "squadshifts-new_wiki": Source("CC BY 4.0"),
    "squadshifts-reddit": Source("CC BY 4.0", max_documents=600, titled=False),
    "squadshifts-amazon_reviews": Source("CC BY 4.0", max_documents=400, titled=False),
    "timeqa-human-easy": Source("BSD-3-Clause", max_questions=3),
    "tweetqa-train": Source("CC BY-SA 4.0", max_documents=300),
    "qamr-dev": Source("MIT", max_documents=200, max_questions=3),
    "qamr-test": Source("MIT", max_documents=200, max_questions=3),
    "fairytaleqa-train": Source("Apache-2.0", max_documents=300),
}
_MAX_ANSWER_WORDS = 8  # longer answers are free text, which exact match can't judge and this task does not need


def choose_documents(
    documents: Iterable[QuestionedDocument], sources: dict[str, Source], seed: int
) -> list[QuestionedDocument]:
    """Documents of the known sources in a seeded order, each with at most its source's number of short-answer questions."""
    rng = random.Random(seed)
    by_source: dict[str, list[QuestionedDocument]] = {name: [] for name in sources}
    for document in documents:
        if document.source in by_source:
            by_source[document.source].append(document)
    chosen: list[QuestionedDocument] = []
    for name, source in sources.items():
        pool = by_source[name]
        rng.shuffle(pool)
        kept = [limited for document in pool if (limited := _limited(document, source, rng)).questions]
        chosen.extend(kept[: source.max_documents])
    rng.shuffle(chosen)
    return chosen


def _limited(document: QuestionedDocument, source: Source, rng: random.Random) -> QuestionedDocument:
    short = [(q, a) for q, a in document.questions if len(a[0].split()) <= _MAX_ANSWER_WORDS]
    questions: Sequence[tuple[str, tuple[str, ...]]] = rng.sample(short, min(len(short), source.max_questions))
    title = document.title if source.titled else ""
    return QuestionedDocument(document.doc_id, title, document.text, document.source, tuple(questions))
