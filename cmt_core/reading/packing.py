"""Packed contexts of a question: which tokens of which memories, at which places; no key or value is needed to say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmt_core.config import MemoryConfig
from cmt_core.memory.packed_context import PackedContext, Prefix, Run, as_runs

__all__ = ["Chosen", "chosen_of", "prefix_alone", "stacked"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What ψ chose for one question: a context, which of its `size` memories each of the context's is (`owners`), the share
    of the prior that each of the `size` has, and which of them the question takes `together` (empty: it takes no two)."""

    context: PackedContext
    owners: tuple[int, ...]
    size: int
    shares: tuple[float, ...]
    together: tuple[int, ...] = ()


def texts_read(texts: Sequence[str], owners: Iterable[int], size: int) -> list[str]:
    """Of a text for each of a question's `size` memories those of the memories that are read (`owners`, in any order)."""
    return [texts[memory] for memory in sorted(set(owners)) if 0 <= memory < size]


def stacked(config: MemoryConfig, fixed_slots: bool, prefix_tokens: int, memories: Sequence[bytes]) -> Chosen:
    """All tokens of a question's memories, each in a slot of a whole window, or without `fixed_slots` right behind the last."""
    runs: list[Run] = []
    place = prefix_tokens
    for number, memory in enumerate(memories):
        tokens = config.tokens_of(memory)
        runs.append(Run(number, 0, tokens, place))
        place += config.slot_tokens if fixed_slots else tokens
    context = PackedContext("reading", prefix_tokens, tuple(memories), tuple(runs), place)
    count = len(memories)
    return Chosen(context, tuple(range(count)), count, (1 / max(1, count),) * count)


def chosen_of(
    prefix_tokens: int,
    memories: Sequence[bytes],
    places: Sequence[tuple[int, int]],
    length: int,
    shares: Sequence[float],
    together: tuple[int, ...] = (),
) -> Chosen:
    """Chosen tokens (memory, token) one behind the other; the question follows `length` positions behind the prefix."""
    owners = list(dict.fromkeys(memory for memory, _ in places))
    numbers = {memory: number for number, memory in enumerate(owners)}
    columns = [(numbers[memory], token, prefix_tokens + i) for i, (memory, token) in enumerate(places)]
    read = tuple(memories[owner] for owner in owners)
    context = PackedContext("reading", prefix_tokens, read, as_runs(columns), prefix_tokens + length)
    return Chosen(context, tuple(owners), len(memories), tuple(shares), together)


def prefix_alone(prefix: Prefix, prefix_tokens: int) -> PackedContext:
    """A prefix without any memory: the prompt follows right behind it."""
    return PackedContext(prefix, prefix_tokens, (), (), prefix_tokens)
