"""Two documents for one answer: what tells them, that ψ reads both, that the relevance threshold keeps both, and mode `auto`."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from cmt_core import model
from cmt_core.checkpoint import Checkpoint
from cmt_core.generation import answering
from cmt_core.generation.engine import Look
from cmt_core.generation.query import Query
from cmt_core.generation.spelling import Speller
from cmt_core.grounded import text_reads
from cmt_core.llm.folder import LLMFolder
from cmt_core.memory_bank import Entry, MemoryBank
from cmt_core.model import CMT, Answer
from cmt_core.reading import aggregation
from cmt_core.reading.aggregation import joined, to_join, with_looks
from cmt_core.retrieval.complement import completed_by
from cmt_core.retrieval.evidence import relevant
from cmt_core.retrieval.query_likelihood import query_log_likelihood
from cmt_core.vllm_engine.packed_model import PackedModel
from services.metrics import Metrics
from services.query.engine.messages import Ask, Failure, HitList, Reply
from services.query.engine.retrieval import Retrieval
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.query.engine.streaming import StreamAnswerer
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank
from services.testing.streamed import StreamedLexical
from tests.serving import publish
from tests.unit.conftest import TinyFolders
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


def test_a_question_that_is_far_likelier_behind_two_is_read_from_both_and_the_likeliest_stands_last() -> None:
    prior = with_looks(torch.tensor([[9.0, 1.0, 2.0]] * 3), [], [], 0.37)
    pairs = to_join(prior, [[1, 0, 0], [1, 0, 0], [None, 0, 0]])
    assert pairs == [(0, 1, 0), (1, 1, 0)]
    (both, alone, other), together = joined(prior, pairs, [13.0, 11.0])
    assert both.isfinite().tolist() == [True, True, False]
    assert both.argmax() == 1
    assert both.softmax(dim=-1).tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-3)
    assert alone.tolist() == other.tolist() == prior[1].tolist()
    assert together == [(1, 0), (), ()]
    assert joined(prior, [], [])[0].tolist() == prior.tolist()
    assert to_join(prior, None) == []


def test_the_likelihood_of_the_question_says_first_which_document_wants_another() -> None:
    start = torch.tensor([[1.0, 0.9, -9.0]])
    looked = [(0, 0), (0, 1)]
    assert to_join(with_looks(start, looked, [-20.0, -10.0], 0.37), [[None, 2, None]]) == [(0, 2, 1)]
    assert to_join(with_looks(start, looked, [-10.0, -20.0], 0.37), [[None, 2, None]]) == []


@pytest.fixture
def codes(selecting: CMT) -> list[bytes]:
    return [memory.code for text in (SWIM, VOTE) for memory in selecting.compress(selecting.windows("", text))]


@pytest.mark.parametrize(("least", "read"), [(-1e9, [1, 0]), (1e9, [0])])
def test_how_much_likelier_decides(
    selecting: CMT, codes: list[bytes], monkeypatch: pytest.MonkeyPatch, least: float, read: list[int]
) -> None:
    monkeypatch.setattr(aggregation, "JOINED_NATS", least)
    reading = selecting.context([QUESTION], [codes], [[2.0, 0.1]], [[1, 0]])
    owners = [owner for owner in reading.owner[0].tolist() if owner >= 0]
    assert list(dict.fromkeys(owners)) == read
    assert reading.two(0) == (tuple(read) if len(read) == 2 else ())
    assert selecting.likely([QUESTION], [codes], [[2.0, 0.1]], [[1, 0]]) == [read]
    (answer,) = selecting.write(selecting.ask([QUESTION], [codes], [[2.0, 0.1]], completed_by=[[1, 0]]), 3)
    assert answer.together == reading.two(0)


@pytest.mark.parametrize("least", [-1e9, 1e9])
def test_answers_are_spelled_from_what_is_read_alone(
    selecting: CMT, codes: list[bytes], monkeypatch: pytest.MonkeyPatch, least: float
) -> None:
    monkeypatch.setattr(aggregation, "JOINED_NATS", least)
    taken: list[list[str]] = []

    class Noted(Speller):
        def __init__(self, texts: Sequence[str], *others: Any) -> None:
            super().__init__(texts, *others)
            taken.append(list(texts))

    for module in (model, answering):
        monkeypatch.setattr(module, "Speller", Noted)
    sources, read = [SWIM, VOTE], [SWIM, VOTE] if least < 0 else [SWIM]
    asked = selecting.ask([QUESTION], [codes], [[2.0, 0.1]], completed_by=[[1, 0]])
    selecting.write(asked, 3, [sources])
    query = Query(QUESTION, memories=codes, scores=[2.0, 0.1], completed_by=[1, 0], spelled_from=sources)
    selecting.answer_batch().join([query, dataclasses.replace(query, mode="hybrid", passages=["Noor."])])
    selecting.write(selecting.ask_of_text([QUESTION], [[VOTE]]), 3, [sources])
    assert taken == [read, read, [*read, "Noor."], [VOTE]]


def test_the_gain_is_that_of_the_two_memories_over_the_likeliest_alone(
    selecting: CMT, codes: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nats(memories: list[bytes]) -> float:
        whole = copy.copy(selecting)
        whole.select = None
        asked = [selecting.prompting.for_likelihood(QUESTION)]
        return query_log_likelihood(selecting.backbone, whole.context([QUESTION], [memories]).context, asked)[0]

    gain = nats([codes[1], codes[0]]) - nats([codes[0]])
    for least, together in ((gain - 0.01, (1, 0)), (gain + 0.01, ())):
        monkeypatch.setattr(aggregation, "JOINED_NATS", least)
        assert selecting.context([QUESTION] * 3, [codes] * 3, [[2.0, 0.1]] * 3, [[1, 0]] * 3).two(2) == together


def test_one_entry_a_memory_is_wanted(selecting: CMT, codes: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"\[1\] completing memories for \[2\] memories"):
        selecting.context([QUESTION], [codes], [[2.0, 0.1]], [[None]])


def test_what_completes_a_relevant_text_is_relevant_and_nothing_else_is() -> None:
    cosines = [0.6, 0.1, 0.1]
    assert relevant([QUESTION], [SWIM, BAKERY, VOTE], cosines, 0.3, 0.25) == [True, False, True]
    assert relevant(["Who swam for nine hours?"], [SWIM, BAKERY, VOTE], cosines, 0.3, 0.25) == [True, False, False]
    assert relevant([QUESTION], [BAKERY, VOTE], [0.1, 0.1], 0.3, 0.25) == [False, False]  # nothing to complete
    assert relevant([QUESTION], [SWIM, BAKERY, VOTE], cosines, 0.3, 0.0) == [True, False, False]


def test_an_answer_that_takes_two_is_read_from_both_texts_though_it_stands_in_one(tiny_cmt: CMT) -> None:
    answers = [Answer("Noor Hallivane", 9, 2, "stop", [1.0, 0.0, 0.0], together) for together in ((2, 0), ())]
    reads = text_reads(tiny_cmt, [QUESTION] * 2, answers, [[SWIM, BAKERY, VOTE]] * 2)
    assert (reads.rows, reads.texts, reads.begun) == ([0], [[VOTE, SWIM]], [""])


def test_the_library_reads_both_texts_in_mode_auto(selecting: CMT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "JOINED_NATS", -1e9)
    bank = MemoryBank(selecting, min_score=-1.0)
    bank.extend([Entry(text, doc_id=doc_id) for doc_id, text in (("swim", SWIM), ("vote", VOTE))])
    answer = bank.ask(QUESTION, 2, max_new_tokens=4)
    assert answer.read_text
    texts = [[VOTE, SWIM], [SWIM, VOTE]]
    asked = [selecting.write(selecting.ask_of_text([QUESTION], [own]), 4, [own])[0].text for own in texts]
    assert answer.text in asked
    monkeypatch.setattr(aggregation, "JOINED_NATS", 1e9)
    memory = bank.ask(QUESTION, 2, max_new_tokens=4, mode="memory")
    assert not memory.read_text
    assert sorted(memory.weights)[0] == 0.0


class Looks:
    """An engine that finds the question as likely as it is told to, behind so many memories."""

    def __init__(self, nats: dict[int, float]) -> None:
        self.nats, self.read = nats, list[tuple[bytes, ...]]()

    async def log_likelihoods(self, looks: Sequence[Look]) -> list[float]:
        self.read += [tuple(look.context.memories) for look in looks]
        return [self.nats[len(look.context.memories)] for look in looks]


@pytest.mark.parametrize(("gain", "together"), [(13.0, (1, 0)), (11.0, ())])
def test_vllms_side_of_it_joins_the_same_two(
    selecting: CMT, codes: list[bytes], tiny_folders: TinyFolders, gain: float, together: tuple[int, ...]
) -> None:
    checkpoint = dataclasses.replace(
        Checkpoint.load(tiny_folders.checkpoint), config=selecting.config, select=selecting.select
    )
    llm, folder = LLMFolder.load(tiny_folders.llm), tiny_folders.checkpoint
    packed = PackedModel(llm, checkpoint, folder, selecting.retriever, "tiny")
    engine = Looks({1: -30.0, 2: gain - 30.0})
    query = Query(QUESTION, memories=codes, scores=[2.0, 0.1], completed_by=[1, 0], spelled_from=[SWIM, VOTE])
    prepared = asyncio.run(packed.prepare(query, 4, engine))  # type: ignore[arg-type]
    assert prepared.together == together
    assert prepared.request.spelled_from == ((SWIM, VOTE) if together else (SWIM,))
    assert engine.read == [(codes[1], codes[0]), (codes[0],)]
    assert prepared.request.context.memories == ((codes[1], codes[0]) if together else (codes[0],))


@pytest.fixture(params=["running batch", "streams"])
def engine(request: pytest.FixtureRequest) -> Iterator[Callable[..., tuple[Scheduler | StreamAnswerer, Metrics]]]:
    made: list[Scheduler | StreamAnswerer] = []

    def start(**options: Any) -> tuple[Scheduler | StreamAnswerer, Metrics]:
        model, bank, metrics = StreamedLexical(), InMemoryBank(), Metrics()
        for doc_id, text in ARTICLES.items():
            publish(bank, model, doc_id, text)
        kind = Scheduler if request.param == "running batch" else StreamAnswerer
        made.append(kind(model, bank, SchedulerOptions(**options), metrics))
        return made[-1], metrics

    yield start
    for scheduler in made:
        scheduler.stop()


def asked(scheduler: Scheduler | StreamAnswerer, question: str, mode: str) -> Reply:
    box = Inbox()
    scheduler.submit(Ask(question, mode), box)  # type: ignore[arg-type]
    reply = box.end()
    assert isinstance(reply, Reply), reply
    assert reply.answer == box.text
    return reply


def text_reads_of(metrics: Metrics) -> float:
    return sum(metrics.snapshot().numbers.get("cmt_query_text_reads_total", {}).values())


def test_auto_reads_the_texts_of_both_at_once(
    engine: Callable[..., tuple[Scheduler | StreamAnswerer, Metrics]],
) -> None:
    scheduler, metrics = engine(top_k=3)
    reply = asked(scheduler, QUESTION, "auto")
    assert (reply.read, reply.mode, reply.grounded) == ("text", "auto", True)
    assert reply.prompt_tokens == sum(len(text.split()) for text in (QUESTION, QUESTION, SWIM, VOTE))
    assert [source.doc_id for source in reply.sources] == ["swim", "vote", "bakery"]
    assert reply.sources[0].weight is not None
    assert reply.sources[0].weight > 0.5  # what the memory attended to
    assert text_reads_of(metrics) == 1
    assert asked(scheduler, "Who won the by-election in Saltmere?", "auto").read == "memory"
    assert asked(scheduler, QUESTION, "memory").read == "memory"
    assert text_reads_of(metrics) == 1


def test_two_texts_that_are_too_long_for_a_prompt_are_read_as_memories(
    engine: Callable[..., tuple[Scheduler | StreamAnswerer, Metrics]],
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
