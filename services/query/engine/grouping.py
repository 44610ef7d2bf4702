"""Runs questions of a kind together, and turns what goes wrong into the failure of the question that is at fault."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from services.errors import BankError
from services.query.engine.messages import Failure

__all__ = ["attempted", "failure_of", "in_groups", "isolated"]

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
    """Runs a group; when it raises, runs its members one by one so that only the bad ones fail.

    Raises only what no other question could escape: the loss of the device.
    """
    try:
        results = run(group)
        if len(results) != len(group):
            raise RuntimeError(f"{len(results)} results came back for {len(group)} questions")
        return list(results)
    except BaseException as error:
        if _device_is_lost(error):
            raise
        # the bank is down for all of them: asking again one by one would only wait longer
        if len(group) > 1 and not isinstance(error, BankError):
            return [one for item in group for one in isolated([item], run)]
        return [failure_of(error) for _ in group]


def attempted(run: Callable[[], R]) -> R | Failure:
    """What `run` gives, or the failure that what it raised is."""
    try:
        return run()
    except BaseException as error:  # noqa: BLE001 - Rust code, which the bank and tokenizers are, panics past Exception
        return failure_of(error)


def failure_of(error: BaseException) -> Failure:
    """A question's failure; its message may quote the question, so the log gets the kind of error alone."""
    if isinstance(error, BankError):
        return Failure("bank", str(error))
    at_fault = isinstance(error, ValueError)
    _log.warning("a question failed: %s", type(error).__name__)
    _log.debug("its trace", exc_info=error)
    if not at_fault:
        return Failure("internal", f"internal error: {type(error).__name__}")
    return Failure("question", str(error).splitlines()[0] if str(error) else type(error).__name__)


def _device_is_lost(error: BaseException) -> bool:
    """Whether nothing works on the GPU any more until the process is another one; too little memory is no such error."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
