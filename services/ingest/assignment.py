"""Says which consumer reads which partition: evenly, and with as few partitions moved as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["next_step", "plan"]


def plan(partitions: Iterable[int], held: Mapping[str, Iterable[int]]) -> dict[str, set[int]]:
    """Every partition for exactly one of the members of `held`, which says what each reads now.

    Shares differ by one at most. A member keeps what it has as far as its share allows. Nothing without members.
    """
    members = sorted(held)
    if not members:
        return {}
    todo = set(partitions)
    small, larger = divmod(len(todo), len(members))
    planned: dict[str, set[int]] = {name: set() for name in members}
    # who has most keeps most: then the larger shares cost the fewest moves
    for rank, name in enumerate(sorted(members, key=lambda one: (-len(set(held[one]) & todo), one))):
        share = small + (rank < larger)
        planned[name] = set(sorted(set(held[name]) & todo)[:share])
        todo -= planned[name]
    for rank, name in enumerate(sorted(members, key=lambda one: (-len(planned[one]), one))):
        share = small + (rank < larger)
        for partition in sorted(todo)[: share - len(planned[name])]:
            planned[name].add(partition)
            todo.discard(partition)
    return planned


def next_step(planned: Mapping[str, set[int]], held: Mapping[str, Iterable[int]]) -> dict[str, set[int]]:
    """What each member may be told now: of its plan all but what another member has not given up yet.

    Two members never read one partition at a time; the rest of the plan follows once `held` says that it is free.
    """
    taken = {partition: name for name in held for partition in held[name]}
    return {
        name: {partition for partition in wanted if taken.get(partition, name) == name}
        for name, wanted in planned.items()
    }
