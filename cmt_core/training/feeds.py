"""The numbered batches of each stage: batch n is a function of n and the seed alone, so a stopped run goes on with its data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cmt_core.training.batches import Batch, TrainingWindow, collate, some_questions

__all__ = ["ClusterFeed", "Feed", "WindowFeed", "held_out_batches", "shuffled"]

Feed = Callable[[int, random.Random], Batch]


@dataclass(frozen=True, slots=True)
class WindowFeed:
    """`size` windows a batch in a seeded order, each with itself as its only document.

    At most `most` questions of each (None: all).
    """

    windows: Sequence[TrainingWindow]
    size: int
    seed: int
    pad_id: int
    device: torch.device
    most: int | None = None

    def __call__(self, number: int, rng: random.Random) -> Batch:
        order = shuffled(len(self.windows), self.seed)
        rows = [order[(number * self.size + i) % len(order)] for i in range(self.size)]
        chosen = [[some_questions(self.windows[row], self.most, rng)] for row in rows]
        return collate(chosen, 1, self.pad_id, rng).to(self.device)


@dataclass(frozen=True, slots=True)
class ClusterFeed:
    """`size` groups of neighbouring windows a batch, with k documents in context as `k_cycle` says by turns.

    A row's own document comes first in the share `first` of the contexts (None: at random); `most` as in WindowFeed.
    """

    windows: Sequence[TrainingWindow]
    clusters: Sequence[Sequence[int]]
    size: int
    k_cycle: tuple[int, ...]
    first: float | None
    pad_id: int
    device: torch.device
    most: int | None = None

    def __call__(self, number: int, rng: random.Random) -> Batch:
        chosen = [self.clusters[(number * self.size + i) % len(self.clusters)] for i in range(self.size)]
        k = self.k_cycle[number % len(self.k_cycle)]
        groups = [[some_questions(self.windows[row], self.most, rng) for row in group] for group in chosen]
        return collate(groups, k, self.pad_id, rng, self.first).to(self.device)


def held_out_batches(
    windows: Sequence[TrainingWindow], size: int, pad_id: int, device: torch.device, most: int | None = None
) -> list[Batch]:
    """All windows once, each with its own document alone."""
    feed = WindowFeed(windows, size, 0, pad_id, device, most)
    return [feed(number, random.Random(number)) for number in range(-(-len(windows) // size))] if windows else []


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in the seed's order."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
