"""Scores: SQuAD's definitions on hand-made cases, and the stream protocol on a tiny model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cmt_core.data.qa import QAExample
from cmt_core.errors import ConfigError
from cmt_core.evaluation.metrics import contains_answer, contains_facts, exact_match, f1, normalise, papers_exact_match
from cmt_core.evaluation.systems import system
from cmt_core.memory_bank import Entry, MemoryBank
from cmt_core.reading import aggregation
from cmt_core.reading.aggregation import Select
from cmt_core.retrieval.hybrid import HybridIndex, RowHit
from cmt_core.retrieval.ranking import DENSE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cmt_core.model import CMT


def test_normalisation_is_squads() -> None:
    assert normalise("  The  Cat's, a hat! ") == "cats hat"
    assert normalise("Joa\u0303o\u00ad Pe\u0301res") == normalise("João Péres")


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The Eiffel Tower.", ["Eiffel Tower"], 1.0),
        ("Eiffel Tower in Paris", ["Eiffel Tower"], 0.0),
        ("Paris", ["London", "paris"], 1.0),
        ("", ["Paris"], 0.0),
    ],
)
def test_exact_match_is_strict(prediction: str, answers: list[str], expected: float) -> None:
    assert exact_match(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Eiffel Tower in Paris", ["Eiffel Tower"], 2 * 0.5 * 1 / 1.5),
        ("red blue", ["green", "blue"], 2 * 0.5 * 1 / 1.5),
        ("nothing", ["Paris"], 0.0),
        ("red red", ["red"], 2 * 0.5 * 1 / 1.5),
    ],
)
def test_f1_counts_shared_tokens_once_each(prediction: str, answers: list[str], expected: float) -> None:
    assert f1(prediction, answers) == pytest.approx(expected)


def test_papers_exact_match_asks_for_the_shortest_gold_as_a_prefix() -> None:
    assert papers_exact_match("Paris, the capital", ["Paris", "the city of Paris"]) == 1.0
    assert papers_exact_match("In Paris", ["Paris"]) == 0.0
    assert papers_exact_match("anything", ["the"]) == 0.0  # a gold that normalises to nothing matches nothing


def test_contained_answer_must_stand_at_word_borders() -> None:
    assert contains_answer("It was on 23 January, they said", ["23 January"])
    assert not contains_answer("There were 1234 of them", ["123"])
    assert not contains_answer("", ["x"])


def test_facts_must_all_be_told_in_one_of_their_wordings() -> None:
    facts = (("jackdaw",), ("nest", "twigs"))
    assert contains_facts("The jackdaws' twigs knocked the weight.", facts)
    assert not contains_facts("A jackdaw did it.", facts)
    assert not contains_facts("An honest jackdaw.", facts)  # nest only inside a word
    assert contains_facts("It sold 6,350 kilos.", [["6,350"]])
    assert not contains_facts("It sold 63,500 kilos.", [["6,350"]])


def test_likely_text_is_that_of_the_documents_that_select_would_read(
    exact_cmt: CMT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "JOINED_NATS", -1e9)
    exact_cmt.select = Select(exact_cmt.backbone.shape, exact_cmt.backbone.query_heads, 64)
    exact_cmt.config = dataclasses.replace(exact_cmt.config, aggregation="select", context_vectors=64)
    bank = MemoryBank(exact_cmt)
    texts = ["The mayor opened the bridge.", "A storm cancelled the ferry.", "The town has six bells."]
    bank.extend([Entry(text, doc_id=str(number)) for number, text in enumerate(texts)])
    rows = [[RowHit(0, 0.5), RowHit(1, 0.9), RowHit(2, 0.85)], [RowHit(2, 0.9), RowHit(1, 0.1), RowHit(0, 0.1)]]
    questions = ["Who opened the bridge?", "How many bells?"]
    codes = bank.codes([[one.row for one in row] for row in rows])
    scores = [[one.score for one in row] for row in rows]
    assert set(exact_cmt.likely(questions, codes, scores)[0]) <= {1, 2}  # the first one's score leaves it out
    together: list[list[int | None]] = [[None, 0, 0], [None, None, None]]  # but it has what the question names
    kept = exact_cmt.likely(questions, codes, scores, together)
    assert kept[1] == [0]
    assert kept[0] in ([0, 1], [0, 2])
    asked = system("rag_likely", exact_cmt, instructions="").ask(bank, questions, rows)
    by_hand = [[texts[row[place].row] for place in own] for row, own in zip(rows, kept, strict=True)]
    expected = exact_cmt.ask_of_text(questions, by_hand)
    assert asked.prompts == expected.prompts
    assert asked.reading.text_tokens == expected.reading.text_tokens
    read = exact_cmt.ask(questions, codes, scores, completed_by=together).reading
    owners = [sorted({owner for owner in row if owner >= 0}) for row in read.owner.tolist()]
    assert [sorted(own) for own in kept] == owners


def test_stream_scores_cover_every_system(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.stream import evaluate_stream

    texts = {
        f"d{i}": f"The harbour of {name} opened in {1900 + i}."
        for i, name in enumerate(("Aru", "Belo", "Cimi", "Dora"))
    }
    rows = [QAExample(doc, "", text, f"When did it open? {text[:25]}", (text[-5:-1],)) for doc, text in texts.items()]
    asked = ("stack", "rag_prefix", "rag_bare", "closed", "stack@1", "closed_prefix")
    scores = list(evaluate_stream(tiny_cmt, rows, systems=asked, questions=4, k=2, max_new_tokens=3))
    assert [score.system for score in scores] == [name.removesuffix("@1") for name in asked]
    memory, rag, bare, closed, one, prefixed = scores
    assert (one.k, one.recall_at_k, one.oracle_f1) == (1, memory.recall_at_1, memory.oracle_f1)
    assert (memory.documents, memory.questions, memory.k) == (4, 4, 2)
    assert memory.bytes_per_document == tiny_cmt.memory_bytes
    assert (rag.bytes_per_document, closed.k, closed.oracle_f1, closed.oracle_nats) == (0, 0, None, None)
    assert all(score.answer_nats > 0 for score in scores)
    assert one.oracle_nats == memory.oracle_nats != memory.answer_nats
    assert 0 < memory.vectors_per_document <= tiny_cmt.config.window_tokens
    assert prefixed.prompt_tokens < closed.prompt_tokens < bare.prompt_tokens
    assert memory.prompt_tokens < rag.prompt_tokens
    assert all(0 <= share <= 100 for share in (memory.em, memory.f1, memory.recall_at_1, memory.recall_at_k))
    assert memory.recall_at_k >= memory.recall_at_1
    assert (memory.attended, one.attended_first) == (memory.recall_at_k, one.recall_at_1)  # `stack` leaves none out
    assert memory.attended_first is not None
    assert memory.attended_first <= memory.recall_at_k
    assert (rag.attended_first, closed.attended) == (None, None)
    assert memory.recall_at_1 == rag.recall_at_1  # all systems are asked the same questions of the same bank


def test_same_seed_asks_the_same_questions(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.stream import evaluate_stream

    rows = [
        QAExample(f"d{i}", "", f"Town {i} has {i} bells.", f"How many bells has town {i}?", (str(i),))
        for i in range(12)
    ]

    def run(seed: int) -> tuple[float, float]:
        (score,) = evaluate_stream(
            tiny_cmt, rows, systems=("stack",), questions=5, documents=8, seed=seed, max_new_tokens=2
        )
        return score.f1, score.recall_at_1

    assert run(3) == run(3)


def test_a_system_that_the_checkpoint_can_not_be_is_refused_before_the_bank_is_filled(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.stream import evaluate_stream

    for name, reason in (
        ("select", "needs a checkpoint with that"),
        ("nonsense", "known are select, auto, single"),
        ("stack@0", "is not SYSTEM@K"),
    ):
        with pytest.raises(ConfigError, match=reason):
            evaluate_stream(tiny_cmt, iter([]), systems=(name,))


def test_answer_is_made_once_and_keeps_the_seconds_it_took(tiny_cmt: CMT) -> None:
    from cmt_core.evaluation.bank import filled_bank
    from cmt_core.evaluation.systems import system

    bank = filled_bank(tiny_cmt, [(f"d{i}", "", f"Town {i} has {i} bells.") for i in range(3)])
    two, one = (QAExample(f"d{i}", "", "", f"Where are {i} bells?", (f"Town {i}",)) for i in (2, 1))
    compared = system("stack", tiny_cmt)
    first = compared.answers(bank, [two, one], [[RowHit(2, 0.9)], [RowHit(1, 0.8)]], 3)
    again = compared.answers(bank.part({"d1", "d2"}), [two, one], [[RowHit(1, 0.5)], [RowHit(0, 0.5)]], 3)
    assert all(once is known for once, known in zip(first, again, strict=True))  # the rows moved, not the windows
    assert all(answered.seconds > 0 and answered.gold_nats > 0 for answered in first)
    (both,) = compared.answers(bank, [two], [[RowHit(2, 0.9), RowHit(1, 0.1)]], 3)
    assert both is not first[0]
    (other_gold,) = compared.answers(bank, [dataclasses.replace(two, answers=("Nowhere",))], [[RowHit(2, 0.9)]], 3)
    assert other_gold.answer == first[0].answer
    assert other_gold.gold_nats != first[0].gold_nats


def rows_of(found: Sequence[Sequence[RowHit]]) -> list[list[int]]:
    return [[one.row for one in row] for row in found]


def test_hybrid_search_finds_a_name_that_the_keys_miss() -> None:
    texts = ["The harbour of Aru opened.", "Whales were seen in Belo bay.", "Prices rose in May."]
    keys = np.eye(3, dtype=np.float16)
    asked, key = ["Who saw a whale in Belo?"], np.array([[0.61, 0.55, 0.57]], dtype=np.float16)
    assert rows_of(HybridIndex(texts, keys, DENSE).nearest(asked, key, 1)) == [[0]]
    assert rows_of(HybridIndex(texts, keys).nearest(asked, key, 2)) == [[1, 0]]


def test_hybrid_search_without_usable_words_is_the_keys_alone() -> None:
    keys = np.eye(2, dtype=np.float16)
    key = np.array([[0.1, 0.9]], dtype=np.float16)
    assert rows_of(HybridIndex(["of the", "?!"], keys).nearest(["harbour"], key, 1)) == [[1]]
    assert rows_of(HybridIndex(["harbour", "ferry"], keys).nearest(["of the"], key, 1)) == [[1]]
