"""Runs questions of a kind together, and turns what goes wrong into the failure of the question that is at fault."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from services.errors import BankError
from services.query.asks import Failure

__all__ = ["failure_of", "in_groups", "isolated"]

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger(__name__)


def in_groups(items: Sequence[T], key: Callable[[T], Hashable], run: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """Runs items of equal key together and gives results in the items' order."""
    groups: dict[Hashable, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(key(item), []).append(i)
    results: dict[int, R] = {}
    for members in groups.values():
        results.update(zip(members, run([items[i] for i in members]), strict=True))
    return [results[i] for i in range(len(items))]


def isolated(group: Sequence[T], run: Callable[[Sequence[T]], Sequence[R]]) -> list[R | Failure]:
    """Runs a group; when it raises, runs its members one by one so that only the bad ones fail."""
    try:
        results = run(group)
        if len(results) != len(group):
            raise RuntimeError(f"{len(results)} results came back for {len(group)} questions")
        return list(results)
    except BankError as error:  # the bank is down for all of them: asking again one by one would only wait longer
        return [Failure("bank", str(error)) for _ in group]
    except Exception as error:  # noqa: BLE001 - the one loop that turns any failure into this question's own
        if len(group) > 1:
            return [one for item in group for one in isolated([item], run)]
        return [failure_of(error)]


def failure_of(error: Exception) -> Failure:
    """A question's failure; its message may quote the question, so the log gets the kind of error alone."""
    at_fault = isinstance(error, ValueError)
    _log.warning("a question failed: %s", type(error).__name__)
    _log.debug("its trace", exc_info=error)
    if not at_fault:
        return Failure("internal", f"internal error: {type(error).__name__}")
    return Failure("question", str(error).splitlines()[0] if str(error) else type(error).__name__)
