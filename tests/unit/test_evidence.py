"""What is relevant: a near key alone is not, a right article that words find is, and a request's own threshold is the cosine."""

from __future__ import annotations

import pytest

from cmt_core.retrieval.evidence import relevant
from services.metrics import Metrics
from services.query.engine.messages import Ask, HitList
from services.query.engine.retrieval import Retrieval
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.serving import publish

FERRY = "Tarrin Lines has ordered seven hybrid ferries. The contract was signed in Quillhaven on Friday."
BAKERY = "After 118 years the ovens of Crumm & Daughters go cold on Christmas Eve."


@pytest.mark.parametrize(
    ("question", "cosine", "expected"),
    [
        ("How many hybrid ferries has Tarrin Lines ordered?", 0.22, True),  # found by its words, its key is far
        ("Who was elected mayor of Quillhaven after the resignation?", 0.40, False),  # the town alone
        ("Who was elected mayor of Quillhaven after the resignation?", 0.60, True),  # a key so near needs no words
        ("What is it?", 0.45, False),
        ("What is it?", 0.56, True),
    ],
)
def test_cosine_and_words_count_together(question: str, cosine: float, expected: bool) -> None:
    assert relevant([question], [FERRY, BAKERY], [cosine, 0.0], 0.3, 0.25) == [expected, False]


def test_the_best_lookup_counts_and_none_is_needed() -> None:
    lookups = ["And how many?", "How many hybrid ferries has Tarrin Lines ordered? And how many?"]
    assert relevant(lookups, [FERRY], [0.2], 0.3, 0.25) == [True]
    assert relevant([], [FERRY], [0.2], 0.3, 0.25) == [False]
    assert relevant(lookups, [], [], 0.3, 0.25) == []


def test_without_evidence_the_cosine_alone_counts() -> None:
    assert relevant(["Tarrin Lines hybrid ferries"], [FERRY, BAKERY], [0.29, 0.31], 0.3, 0.0) == [False, True]


def test_a_request_that_names_a_score_means_the_cosine() -> None:
    model, bank = LexicalModel(), InMemoryBank()
    publish(bank, model, "ferry", FERRY)
    publish(bank, model, "bakery", BAKERY)
    retrieval = Retrieval(model, bank, top_k=2, min_score=0.3, every_chunk=False, metrics=Metrics(), min_evidence=0.25)
    question = "Who ordered seven hybrid ferries of Tarrin Lines?"
    asks = [Ask(question), Ask(question, min_score=-1.0), Ask(question, min_score=0.999)]
    found = [one for one in retrieval.find(asks) if isinstance(one, HitList)]
    assert [[hit.doc_id for hit in one.hits] for one in found] == [["ferry"], ["ferry", "bakery"], []]
    (shown,) = retrieval.find([Ask(question)], relevant_only=False)
    assert isinstance(shown, HitList)
    assert dict(zip([hit.doc_id for hit in shown.hits], shown.relevant, strict=True)) == {
        "ferry": True,
        "bakery": False,
    }
