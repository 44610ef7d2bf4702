"""Training batches: every question sees its context and itself, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from cmt_core.data.qa import QuestionedDocument
from cmt_core.llm.backbone import Backbone
from cmt_core.reading.alignment import place
from cmt_core.training.batches import (
    IGNORED,
    TrainingWindow,
    attend,
    cluster_order,
    collate,
    pack_questions,
    training_windows,
)
from cmt_core.training.stages import answer_questions

PAD = 0


def window(name: int, *questions: tuple[tuple[int, ...], tuple[int, ...]], length: int = 20) -> TrainingWindow:
    """A window of `length` tokens that starts with its name."""
    asked = questions or (((50, 51), (60, 0)),)
    return TrainingWindow(f"window {name}", (name, *range(100, 99 + length)), asked)


@torch.no_grad()
def test_packed_questions_cannot_see_each_other(tiny_backbone: Backbone) -> None:
    first, second, other = ((10, 11, 12), (13, 14, 0)), ((20, 21), (22, 0)), ((30, 31, 32, 33), (34, 35, 0))
    prefix = torch.randn(4, tiny_backbone.shape.width, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(2, 34)[None]
    mask = torch.ones_like(ids)
    exact = tiny_backbone.read(ids, mask, prefix)[:, None]
    hidden = {}
    for name, asked in (
        ("pair", (first, second)),
        ("changed", (first, other)),
        ("alone", (first,)),
        ("last", (other, first)),
    ):
        rows = pack_questions([window(1, *asked)], PAD)
        out, _ = answer_questions(tiny_backbone, place(tiny_backbone, prefix, exact, mask[:, None], 32), rows)
        own = rows.segment == (1 if name == "last" else 0)
        hidden[name] = (out[own], out[(rows.segment >= 0) & ~own])
    for name in ("changed", "alone", "last"):
        torch.testing.assert_close(hidden[name][0], hidden["pair"][0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hidden["changed"][1][:2], hidden["pair"][1][:2], atol=1e-2)


def test_question_token_sees_the_context_and_its_own_past() -> None:
    seen = torch.tensor([[True, False, True]])
    mask = attend(seen, torch.tensor([[0, 0, 1, 1, -1]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 1, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 1, 0, 0],
        [1, 0, 1, 0, 0, 1, 1, 0],
        [1, 0, 1, 0, 0, 0, 0, 1],
    ]


def test_targets_are_the_answers_tokens_only() -> None:
    rows = pack_questions([window(1, ((10, 11, 12), (13, 14, 0)), ((20,), (21, 0))), window(2)], PAD)
    assert rows.ids.shape == (2, 32)
    assert rows.ids[0, :7].tolist() == [10, 11, 12, 13, 14, 20, 21]
    assert rows.targets[0, :7].tolist() == [IGNORED, IGNORED, 13, 14, 0, 21, 0]
    assert rows.segment[0, :8].tolist() == [0, 0, 0, 0, 0, 1, 1, -1]
    assert rows.place[0, :7].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert (rows.targets[rows.segment < 0] == IGNORED).all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_context_holds_the_own_document_once_and_neighbours_of_its_group(k: int) -> None:
    groups = [[window(10 * g + i, length=5 + i) for i in range(4)] for g in range(3)]
    batch = collate(groups, k, PAD, random.Random(0))
    assert batch.context.shape == (12, k)
    for row, context in enumerate(batch.context.tolist()):
        assert context.count(row) == 1
        assert len(set(context)) == k
        assert {other // 4 for other in context} == {row // 4}


def test_own_document_stands_at_every_place_of_the_context() -> None:
    batch = collate([[window(i) for i in range(4)]] * 10, 4, PAD, random.Random(0))
    places = (batch.context == torch.arange(40)[:, None]).int().argmax(dim=1)
    assert set(places.tolist()) == {0, 1, 2, 3}


def test_collated_ids_are_padded_to_a_bucket_and_masked() -> None:
    batch = collate([[window(1, length=20)], [window(2, length=33)]], 1, PAD, random.Random(0))
    assert batch.ids.shape == batch.mask.shape == (2, 64)
    assert batch.mask.sum(dim=1).tolist() == [20, 33]
    assert batch.ids[1, :33].tolist() == list(window(2, length=33).ids)
    assert (batch.ids[batch.mask == 0] == PAD).all()


def test_batches_of_one_seed_are_the_same() -> None:
    groups = [[window(i) for i in range(4)]] * 3
    one, same, other = (collate(groups, 2, PAD, random.Random(seed)).context for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_clusters_hold_nearest_neighbours_and_no_window_twice() -> None:
    rng = np.random.default_rng(0)
    topics = np.eye(8)[np.repeat(np.arange(6), 4)]
    keys = topics + rng.normal(0, 0.02, topics.shape)
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float16)
    order = rng.permutation(24)
    groups = cluster_order(keys[order], 4, seed=3)
    assert sorted(row for group in groups for row in group) == list(range(24))
    assert all(len({int(order[row]) // 4 for row in group}) == 1 for group in groups)
    assert groups == cluster_order(keys[order], 4, seed=3)
    assert groups != cluster_order(keys[order], 4, seed=4)


@pytest.mark.parametrize(("windows", "cluster", "expected"), [(10, 4, 2), (4, 4, 1), (3, 4, 0), (5, 1, 5)])
def test_rest_smaller_than_a_cluster_is_left_out(windows: int, cluster: int, expected: int) -> None:
    keys = np.eye(windows, 16, dtype=np.float16)
    groups = cluster_order(keys, cluster, seed=0)
    assert [len(group) for group in groups] == [cluster] * expected
    assert len({row for group in groups for row in group}) == cluster * expected


def test_question_goes_to_the_first_window_that_holds_an_answer(tiny_backbone: Backbone) -> None:
    def encode(text: str) -> list[int]:
        ids: list[int] = tiny_backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    text = "The mayor opened the bridge. " * 12 + "A storm cancelled the ferry. " * 12
    asked = (("Who opened it?", ("The Mayor",)), ("What came?", ("nothing", "a storm")), ("Why?", ("no such answer",)))
    document = QuestionedDocument("d", "News", text, "s", asked)
    windows = training_windows([document, replace(document, questions=asked[2:])], encode, 0, 64)
    assert [len(one.questions) for one in windows] == [1, 1]
    decode = tiny_backbone.tokenizer.decode
    (question, answer), (_, second) = windows[0].questions[0], windows[1].questions[0]
    assert decode(list(question)) == "\n\nQuestion: Who opened it?\nAnswer:"
    assert (decode(list(answer[:-1])), answer[-1]) == (" The Mayor", 0)
    assert decode(list(second[:-1])) == " a storm"
    assert all(len(one.ids) <= 64 and decode(list(one.ids)) == one.reading for one in windows)
