"""Two documents for one answer: what tells them, that ψ reads both, that the relevance threshold keeps both, and mode `auto`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cmt_core.grounded import text_reads
from cmt_core.memory_bank import Entry, MemoryBank
from cmt_core.model import CMT, Answer
from cmt_core.reading.aggregation import with_looks
from cmt_core.retrieval.complement import best_with_complement, completed_by
from cmt_core.retrieval.evidence import relevant
from services.metrics import Metrics
from services.query.engine.messages import Ask, Failure, HitList, Reply
from services.query.engine.retrieval import Retrieval
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.serving import publish
from tests.unit.test_scheduler import Inbox

QUESTION = "Who won the by-election in the district where Noor Hallivane came out of the water?"
SWIM = "Noor Hallivane swam for nine hours and came out of the water at Saltmere. The district cheered."
VOTE = "Casper Rindlow won the by-election in Saltmere on Thursday."
BAKERY = "After 118 years the ovens of the bakery go cold."
ARTICLES = {"swim": SWIM, "vote": VOTE, "bakery": BAKERY}


@pytest.mark.parametrize(
    ("question", "texts", "expected"),
    [
        (QUESTION, [SWIM, VOTE, BAKERY], [1, 0, 0]),
        (QUESTION, [SWIM, BAKERY, VOTE], [2, 0, 0]),
        ("Who won the by-election in Saltmere?", [VOTE, SWIM, BAKERY], [None, 0, 0]),  # the first has all of it
        ("Where did Noor Hallivane win?", [SWIM, VOTE], [None, 0]),  # one word more is chance
        (QUESTION, [SWIM], [None]),
        (QUESTION, [SWIM, SWIM], [None, None]),
        (QUESTION, ["", ""], [None, None]),
        ("What is it?", [SWIM, VOTE], [None, None]),
        ("", [SWIM, VOTE], [None, None]),
        ("誰が橋を開けた?", [SWIM, VOTE], [None, None]),
        (QUESTION, [], []),
    ],
)
def test_a_text_is_completed_by_the_one_that_has_the_words_it_lacks(
    question: str, texts: list[str], expected: list[int | None]
) -> None:
    assert completed_by(question, texts) == expected


def test_a_long_question_is_not_completed_by_two_of_its_words() -> None:
    long = " ".join(f"word{number}" for number in range(40))
    texts = [" ".join(f"word{number}" for number in range(2, 40)), "word0 word1"]
    assert completed_by(long, texts)[0] is None
    assert completed_by("word0 word1 word2 word3", texts)[0] == 1


def test_the_completing_text_is_read_before_the_best_one() -> None:
    assert best_with_complement(QUESTION, [SWIM, BAKERY, VOTE]) == (2, 0)
    assert best_with_complement("Who swam?", [SWIM, BAKERY, VOTE]) == ()
    assert best_with_complement(QUESTION, []) == ()


def test_of_a_sure_document_the_other_half_is_read_all_the_same_and_stands_first() -> None:
    prior = torch.tensor([[9.0, 1.0, 2.0], [9.0, 1.0, 2.0]])
    both, alone = with_looks(prior, [], [], 0.37, [[1, 0, 0], [None, 0, 0]])
    assert both.isfinite().tolist() == [True, True, False]
    assert both.argmax() == 1
    assert both.softmax(dim=-1).tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-3)
    assert alone.isfinite().tolist() == [True, False, False]


def test_the_likelihood_of_the_question_says_first_which_document_wants_completing() -> None:
    prior = torch.tensor([[1.0, 0.9, -9.0]])
    (read,) = with_looks(prior, [(0, 0), (0, 1)], [-20.0, -10.0], 0.37, [[None, 2, None]])
    assert read.isfinite().tolist() == [False, True, True]
    (other,) = with_looks(prior, [(0, 0), (0, 1)], [-10.0, -20.0], 0.37, [[None, 2, None]])
    assert other.isfinite().tolist() == [True, False, False]


def test_memories_that_belong_together_are_both_read(selecting: CMT) -> None:
    codes = [memory.code for text in (SWIM, VOTE) for memory in selecting.compress(selecting.windows("", text))]
    scores = [[2.0, 0.1]]
    alone = selecting.context([QUESTION], [codes], scores)
    both = selecting.context([QUESTION], [codes], scores, [[1, 0]])
    assert {owner for owner in alone.owner[0].tolist() if owner >= 0} == {0}
    owners = [owner for owner in both.owner[0].tolist() if owner >= 0]
    assert list(dict.fromkeys(owners)) == [1, 0]
    with pytest.raises(ValueError, match=r"\[1\] completing memories for \[2\] memories"):
        selecting.context([QUESTION], [codes], scores, [[None]])


def test_what_completes_a_relevant_text_is_relevant_and_nothing_else_is() -> None:
    cosines = [0.6, 0.1, 0.1]
    assert relevant([QUESTION], [SWIM, BAKERY, VOTE], cosines, 0.3, 0.25) == [True, False, True]
    assert relevant(["Who swam for nine hours?"], [SWIM, BAKERY, VOTE], cosines, 0.3, 0.25) == [True, False, False]
    assert relevant([QUESTION], [BAKERY, VOTE], [0.1, 0.1], 0.3, 0.25) == [False, False]  # nothing to complete
    assert relevant([QUESTION], [SWIM, BAKERY, VOTE], cosines, 0.3, 0.0) == [True, False, False]


def test_the_library_reads_both_texts_in_mode_auto(tiny_cmt: CMT) -> None:
    bank = MemoryBank(tiny_cmt, min_score=-1.0)
    bank.extend([Entry(text, doc_id=doc_id) for doc_id, text in ARTICLES.items()])
    texts = [hit.text for hit in bank.search(QUESTION, 3)]
    reads = text_reads(tiny_cmt, [QUESTION], [Answer("Noor Hallivane", 9, 2, "stop", [1.0, 0.0, 0.0])], [texts])
    assert reads.rows == [0]  # though what it says stands in a source
    assert sorted(reads.texts[0]) == sorted([VOTE, SWIM])
    assert reads.texts[0][1] == texts[0]  # the best one last
    answer = bank.ask(QUESTION, 3, max_new_tokens=4)
    assert answer.read_text
    (same,) = tiny_cmt.write(tiny_cmt.ask_of_text([QUESTION], reads.texts), 4, reads.texts)
    assert answer.text == same.text


@pytest.fixture
def engine() -> Iterator[Callable[..., tuple[Scheduler, Metrics]]]:
    made: list[Scheduler] = []

    def start(**options: Any) -> tuple[Scheduler, Metrics]:
        model, bank, metrics = LexicalModel(), InMemoryBank(), Metrics()
        for doc_id, text in ARTICLES.items():
            publish(bank, model, doc_id, text)
        made.append(Scheduler(model, bank, SchedulerOptions(**options), metrics))
        return made[-1], metrics

    yield start
    for scheduler in made:
        scheduler.stop()


def asked(scheduler: Scheduler, question: str, mode: str) -> Reply:
    box = Inbox()
    scheduler.submit(Ask(question, mode), box)  # type: ignore[arg-type]
    reply = box.end()
    assert isinstance(reply, Reply), reply
    assert reply.answer == box.text
    return reply


def text_reads_of(metrics: Metrics) -> float:
    return sum(metrics.snapshot().numbers.get("cmt_query_text_reads_total", {}).values())


def test_auto_reads_the_texts_of_both_at_once(engine: Callable[..., tuple[Scheduler, Metrics]]) -> None:
    scheduler, metrics = engine(top_k=3)
    reply = asked(scheduler, QUESTION, "auto")
    assert (reply.read, reply.mode, reply.grounded) == ("text", "auto", True)
    assert {source.doc_id: source.weight for source in reply.sources} == {"swim": 0.5, "vote": 0.5, "bakery": 0.0}
    assert text_reads_of(metrics) == 1
    assert asked(scheduler, "Who won the by-election in Saltmere?", "auto").read == "memory"
    assert asked(scheduler, QUESTION, "memory").read == "memory"
    assert text_reads_of(metrics) == 1


def test_two_texts_that_are_too_long_for_a_prompt_are_read_as_memories(
    engine: Callable[..., tuple[Scheduler, Metrics]],
) -> None:
    scheduler, metrics = engine(top_k=3, max_prompt_tokens=20)
    assert asked(scheduler, QUESTION, "auto").read == "memory"
    assert text_reads_of(metrics) == 0


def test_the_search_tells_the_engine_which_hits_belong_together() -> None:
    model, bank = LexicalModel(), InMemoryBank()
    for doc_id, text in ARTICLES.items():
        publish(bank, model, doc_id, text)
    retrieval = Retrieval(model, bank, top_k=3, min_score=-1.0, every_chunk=False, metrics=Metrics())
    (found,) = retrieval.find([Ask(QUESTION)])
    assert not isinstance(found, Failure)
    assert isinstance(found, HitList)
    names = [hit.doc_id for hit in found.hits]
    other = found.completed_by[names.index("swim")]
    assert other is not None
    assert names[other] == "vote"
