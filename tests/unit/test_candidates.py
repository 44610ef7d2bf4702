"""The likeliest of several answers: which beginnings are followed up, which one is taken, and that neighbours notice nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from cmt_core.generation.beginnings import LONGEST_CANDIDATE, first_tokens, likeliness
from cmt_core.generation.candidates import CandidateBatch, generate_likeliest
from cmt_core.generation.greedy import generate, prefill
from cmt_core.generation.query import GREEDY, Query, Sampling
from cmt_core.generation.spelling import Speller
from cmt_core.model import CMT
from cmt_core.reading.batch import Reading

QUESTION = "Who opened the bridge?"


def logits_of(**nats: float) -> torch.Tensor:
    """Logits (200,) of which token n has `tn`."""
    logits = torch.full((200,), -50.0)
    for name, value in nats.items():
        logits[int(name[1:])] = value
    return logits


def test_beginnings_nearly_as_likely_as_the_best_are_followed_up() -> None:
    logits = logits_of(t7=0.0, t3=-0.4, t9=-0.9, t4=-1.2)
    found = first_tokens(logits, None, 4)
    assert [token for token, _ in found] == [7, 3, 9]
    assert [nats for _, nats in found] == pytest.approx(logits.log_softmax(0)[[7, 3, 9]].tolist())
    assert [token for token, _ in first_tokens(logits, None, 2)] == [7, 3]


def test_of_spelled_answers_beginnings_are_compared_with_the_best_that_fits() -> None:
    words = {7: "Bob", 3: "Ann", 9: "Eve", 4: "Lund"}
    speller = Speller(["Eve Lund met Ann."], lambda ids: " ".join(words.get(one, "") for one in ids), {0})
    logits = logits_of(t7=3.0, t3=-0.4, t9=-0.9, t4=-1.5)
    assert [token for token, _ in first_tokens(logits, speller, 4)] == [3, 9]
    nothing = Speller(["Nobody."], lambda ids: "Bob", {0})
    assert [token for token, _ in first_tokens(logits, nothing, 4)] == [7]


def test_an_answer_of_more_tokens_is_not_less_likely_for_that_alone() -> None:
    assert likeliness([-0.5, -0.1, -0.05, -0.05]) > likeliness([-0.6, -0.1])
    assert likeliness([-0.4, -0.1]) > likeliness([-0.4, -0.1, -2.0])


def read(cmt: CMT, corpus: Sequence[str]) -> tuple[Reading, list[int]]:
    memory = cmt.compress(cmt.windows("", corpus[0]))[0]
    return cmt.context([QUESTION], [[memory.code]]), cmt.tokens.prompt(QUESTION)


def followed_up(cmt: CMT, corpus: Sequence[str], most: int, stop_ids: set[int]) -> list[tuple[float, list[int]]]:
    """Every candidate by itself, by other code: its tokens with a stop token at the end, and its likeliness."""
    reading, prompt = read(cmt, corpus)

    def logits(written: Sequence[int]) -> torch.Tensor:
        again = copy.deepcopy(reading.context)
        return prefill(cmt.backbone, again, [[*prompt, *written]]).logits[0].float().log_softmax(-1)

    best = logits([]).max()
    made = []
    for first in logits([]).topk(most).indices.tolist():
        if float(logits([])[first]) >= best - 1.0:
            ids = [first]
            while len(ids) < LONGEST_CANDIDATE and ids[-1] not in stop_ids:
                ids.append(int(logits(ids).argmax()))
            nats = [float(logits(ids[:at])[token]) for at, token in enumerate(ids)]
            made.append((likeliness(nats), ids))
    return sorted(made, reverse=True)


def test_the_likeliest_of_the_candidates_is_the_answer_and_goes_on(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    candidates = followed_up(exact_cmt, corpus, 4, set())
    assert len(candidates) == 4  # a random LLM is sure of nothing
    reading, prompt = read(exact_cmt, corpus)
    (greedy,) = generate(exact_cmt.backbone, reading.context, [prompt], 1, set())
    assert candidates[0][1][0] != greedy.ids[0]
    reading, prompt = read(exact_cmt, corpus)
    (made,) = generate_likeliest(exact_cmt.backbone, reading.context, [prompt], 30, set(), candidates=4)
    assert made.ids[:LONGEST_CANDIDATE] == candidates[0][1]
    again, _ = read(exact_cmt, corpus)
    (rest,) = generate(exact_cmt.backbone, again.context, [[*prompt, *candidates[0][1]]], 6, set())
    assert made.ids[LONGEST_CANDIDATE:] == rest.ids
    assert made.finish_reason == "length"


def test_an_answer_that_ends_is_compared_with_those_that_go_on(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    free = followed_up(exact_cmt, corpus, 4, set())
    for _, ids in free:  # each candidate in turn ends after four tokens, as may others
        stop_ids = {ids[4]}
        expected = followed_up(exact_cmt, corpus, 4, stop_ids)[0][1]
        reading, prompt = read(exact_cmt, corpus)
        (made,) = generate_likeliest(exact_cmt.backbone, reading.context, [prompt], 24, stop_ids, candidates=4)
        ends = expected[-1] in stop_ids
        assert made.ids == (expected[:-1] if ends else expected)
        assert made.finish_reason == ("stop" if ends else "length")


def test_no_candidate_is_an_answer_of_no_words(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    firsts = [ids[0] for _, ids in followed_up(exact_cmt, corpus, 4, set())]
    reading, prompt = read(exact_cmt, corpus)
    (greedy,) = generate(exact_cmt.backbone, reading.context, [prompt], 1, set())
    others = [first for first in firsts if first != greedy.ids[0]]
    for silent in others:  # the end of an answer, if it comes first
        batch, (again, _) = CandidateBatch(exact_cmt.backbone), read(exact_cmt, corpus)
        (started,) = batch.join(again.context, [prompt], [GREEDY], {silent}, candidates=[4])
        assert len(batch._answers[started.row].open) == 3
    again, _ = read(exact_cmt, corpus)
    (nothing,) = generate_likeliest(exact_cmt.backbone, again.context, [prompt], 9, set(greedy.ids), candidates=4)
    assert (nothing.ids, nothing.finish_reason) == ([], "stop")


def test_one_candidate_is_the_greedy_answer(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    reading, prompt = read(exact_cmt, corpus)
    (made,) = generate_likeliest(exact_cmt.backbone, reading.context, [prompt], 12, set())
    again, _ = read(exact_cmt, corpus)
    (greedy,) = generate(exact_cmt.backbone, again.context, [prompt], 12, set())
    assert (made.ids, made.finish_reason) == (greedy.ids, greedy.finish_reason)
    assert torch.allclose(made.attention, greedy.attention, atol=1e-6)


def test_nothing_comes_out_before_the_last_candidate_is_written_and_then_all_of_the_best(
    exact_cmt: CMT, corpus: tuple[str, ...]
) -> None:
    reading, prompt = read(exact_cmt, corpus)
    batch = CandidateBatch(exact_cmt.backbone)
    (started,) = batch.join(reading.context, [prompt], [GREEDY], set(), candidates=[4])
    assert (started.tokens, len(batch)) == ([], 1)
    for _ in range(LONGEST_CANDIDATE - 2):
        assert batch.step() == {started.row: []}
    assert batch.step() == {started.row: followed_up(exact_cmt, corpus, 4, set())[0][1]}
    assert [len(tokens) for tokens in batch.step().values()] == [1]
    batch.leave(started.row)
    assert (len(batch), batch.step()) == (0, {})


def test_an_answer_whose_candidates_are_written_can_leave(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    reading, prompt = read(exact_cmt, corpus)
    batch = CandidateBatch(exact_cmt.backbone)
    (started,) = batch.join(reading.context, [prompt], [GREEDY], set(), candidates=[4])
    batch.step()
    batch.leave(started.row)
    assert (len(batch), batch.step()) == (0, {})


def test_a_drawn_answer_has_one_candidate(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    reading, prompt = read(exact_cmt, corpus)
    drawn = Sampling(0.7, 0.9, seed=3)
    batch = CandidateBatch(exact_cmt.backbone)
    (started,) = batch.join(reading.context, [prompt], [drawn], set(), candidates=[4])
    assert len(started.tokens) == 1


def test_answers_beside_one_another_are_those_that_come_alone(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    codes = [memory.code for text in corpus for memory in exact_cmt.compress(exact_cmt.windows("", text))]
    plain = [
        Query(QUESTION, memories=codes[:1]),
        Query("Where is it?", memories=codes[1:3], spelled_from=corpus[1:3]),
        Query("Whales?", "rag", passages=corpus[:2]),
        Query("By how much?", memories=codes[:2], memory_weight=0.5),
    ]
    queries = [*plain, *(replace(query, candidates=3) for query in plain)]
    together = written(exact_cmt, queries)
    assert together == [written(exact_cmt, [query])[0] for query in queries]
    assert together[:4] != together[4:]


def written(cmt: CMT, queries: Sequence[Query], most: int = 30) -> list[list[int | None]]:
    batch = cmt.answer_batch()
    tokens = {one.row: list(one.tokens) for one in batch.join(queries)}
    while any(len(ids) < most and None not in ids for ids in tokens.values()):
        for row, new in batch.step().items():
            tokens[row] += new
    for row in tokens:
        batch.leave(row)
    assert batch.step() == {}
    return [ids[:most] for ids in tokens.values()]


def test_library_takes_the_candidate_that_the_running_batch_takes(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    codes = [memory.code for text in corpus[:2] for memory in exact_cmt.compress(exact_cmt.windows("", text))]
    query = Query(QUESTION, memories=codes, spelled_from=corpus[:2], candidates=4)
    (ids,) = written(exact_cmt, [query], 12)
    (answer,) = exact_cmt.answer([QUESTION], [codes], max_new_tokens=12, sources=[corpus[:2]], candidates=4)
    assert answer.text == exact_cmt.tokens.text([token for token in ids if token is not None]).strip()
