"""ψ: what `select` keeps of the documents found, in which order, and that its heads learn where answers stand."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch

from cmt_core.llm.backbone import Backbone, KVShape
from cmt_core.reading.aggregation import (
    Select,
    likely,
    question_queries,
    rank_prior,
    score_prior,
    stack,
    to_rerank,
)
from cmt_core.reading.alignment import place, place_chosen

if TYPE_CHECKING:
    from torch import Tensor

SHAPE = KVShape(layers=3, heads=2, head_dim=4)


def mask_of(*lengths: int, T: int = 16) -> Tensor:
    """Mask (1, k, T) of documents with these lengths."""
    return (torch.arange(T)[None, None, :] < torch.tensor(lengths)[None, :, None]).long()


def select(c: int, block: int = 4, floor: float = 0.5) -> Select:
    return Select(SHAPE, 4, c, block, floor)


def even(mask: Tensor) -> Tensor:
    return mask / mask.sum(dim=-1, keepdim=True).clamp_min(1)


def kept(chosen_index: Tensor, seen: Tensor, T: int = 16) -> list[tuple[int, int]]:
    return [(int(i) // T, int(i) % T) for i, there in zip(chosen_index[0], seen[0], strict=True) if there]


def test_the_best_document_is_kept_whole_before_another_gets_room() -> None:
    mask = mask_of(10, 16)
    chosen = select(c=12).choose(even(mask), torch.tensor([[0.0, -3.0]]), mask)
    places = kept(chosen.index, chosen.seen)
    assert places[:10] == [(0, t) for t in range(10)]
    assert places[10:] == [(1, 0), (1, 1)]


def test_a_passage_that_answers_is_kept_before_the_rest_of_the_best_document() -> None:
    mask = mask_of(16, 16)
    attention = even(mask)
    attention[0, 1] = 0
    attention[0, 1, 8:12] = 0.25
    chosen = select(c=16).choose(attention, torch.tensor([[0.0, -0.5]]), mask)
    assert {(1, t) for t in range(8, 12)} <= set(kept(chosen.index, chosen.seen))


def test_blocks_are_kept_whole_and_in_reading_order() -> None:
    mask = mask_of(16)
    attention = torch.zeros(1, 1, 16)
    attention[0, 0, 13], attention[0, 0, 2] = 0.6, 0.4
    chosen = select(c=8).choose(attention, torch.zeros(1, 1), mask)
    assert kept(chosen.index, chosen.seen) == [(0, t) for t in (0, 1, 2, 3, 12, 13, 14, 15)]
    assert chosen.positions.tolist() == [list(range(8))]


def test_padding_and_missing_documents_are_never_kept() -> None:
    mask = torch.cat([mask_of(3, 0), mask_of(16, 5)])
    chosen = select(c=20).choose(even(mask), rank_prior(mask), mask)
    assert kept(chosen.index, chosen.seen) == [(0, 0), (0, 1), (0, 2)]
    assert int(chosen.seen[1].sum()) == 20
    assert chosen.length.tolist() == [20, 20]


def test_a_document_that_scores_far_below_the_best_is_left_out() -> None:
    mask = mask_of(10, 16, 16)
    prior = likely(score_prior(torch.tensor([[0.5, 0.9, 0.88]]), mask))
    chosen = select(c=40).choose(even(mask), prior, mask)
    assert {document for document, _ in kept(chosen.index, chosen.seen)} == {1, 2}
    alone = likely(score_prior(torch.tensor([[0.5, 0.9, 0.6]]), mask))
    assert torch.isinf(alone).tolist() == [[True, False, True]]


def test_the_best_document_stays_however_many_are_as_likely() -> None:
    mask = mask_of(*[4] * 8)
    prior = likely(score_prior(torch.full((1, 8), 0.3), mask))
    assert int(torch.isfinite(prior).sum()) == 1


def test_only_where_no_document_is_sure_the_likely_ones_get_a_second_look() -> None:
    shares = torch.tensor([[0.95, 0.03, 0.02], [0.6, 0.395, 0.005], [1.0, 0.0, 0.0]])
    assert to_rerank(shares.log()).tolist() == [[False] * 3, [True, True, False], [False] * 3]


def test_stack_gives_every_document_a_room_of_its_own() -> None:
    chosen = stack(mask_of(3, 16, 0), window_tokens=16)
    assert chosen.positions[0, 16].item() == 16
    assert chosen.length.tolist() == [32]


@torch.no_grad()
def test_one_document_is_read_as_without_selection(tiny_backbone: Backbone) -> None:
    """With k = 1 and room for all, ψ changes nothing: same rows at the same positions."""
    X = tiny_backbone.shape.width
    prefix, documents = torch.randn(3, X), torch.randn(1, 1, 16, X)
    mask = mask_of(11)
    chooser = Select(tiny_backbone.shape, tiny_backbone.query_heads, 16)
    chosen = chooser.choose(even(mask), rank_prior(mask), mask)
    rows = documents[0].gather(1, chosen.index[..., None].expand(-1, -1, X))
    one = place(tiny_backbone, prefix, documents, mask, 16)
    other = place_chosen(tiny_backbone, prefix, rows, chosen)
    assert one.next_position.tolist() == other.next_position.tolist()
    assert one.seen.tolist() == other.seen.tolist()
    for a, b in zip(one.cache.layers, other.cache.layers, strict=True):
        torch.testing.assert_close(a.keys[:, :, :14], b.keys[:, :, :14])


@torch.no_grad()
def test_a_questions_queries_do_not_depend_on_its_neighbours(tiny_backbone: Backbone) -> None:
    prefix = torch.randn(3, tiny_backbone.shape.width)
    alone = question_queries(tiny_backbone, prefix, [[5, 6, 7]])
    beside = question_queries(tiny_backbone, prefix, [list(range(20, 40)), [5, 6, 7]])
    for a, b in zip(alone, beside, strict=True):
        torch.testing.assert_close(a[0], b[1], atol=1e-4, rtol=1e-4)


def test_attention_sums_to_one_within_a_document() -> None:
    chooser, mask = select(c=8), mask_of(5, 16)
    generator = torch.Generator().manual_seed(0)
    keys = chooser.keys(torch.randn(1, 2, 16, SHAPE.width, generator=generator))
    queries = [torch.randn(1, 16, generator=generator) for _ in range(SHAPE.layers)]
    attention = chooser.attention(queries, keys, mask)
    assert attention.sum(dim=-1).tolist() == [pytest.approx([1.0, 1.0], abs=1e-5)]
    assert float(attention[0, 0, 5:].detach().sum()) == 0


def test_mix_learns_which_head_finds_the_answer() -> None:
    """One head's keys mark the answer, the others are noise: training moves the mix there."""
    from cmt_core.training.objective import evidence_loss

    torch.manual_seed(0)
    rng = random.Random(0)
    chooser, mask = select(c=8), mask_of(16)
    optimiser = torch.optim.Adam(chooser.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        place_ = rng.randrange(16)
        documents = torch.randn(1, 1, 16, SHAPE.layers, 2, SHAPE.heads, SHAPE.head_dim)
        documents[0, 0, :, 2, 0, 1] = 0.0
        documents[0, 0, place_, 2, 0, 1] = 5.0
        queries = [torch.ones(1, 16) for _ in range(SHAPE.layers)]
        span = torch.zeros(1, 16, dtype=torch.bool)
        span[0, place_] = True
        loss = evidence_loss(chooser.attention(queries, chooser.keys(documents.flatten(3)), mask)[:, 0], span)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    best = int(chooser.mix.detach().flatten().argmax())
    assert best in (
        len(chooser.layers) * 4 - 2,
        len(chooser.layers) * 4 - 1,
    )  # the query heads of key head 1, last layer
