"""Joins of a consumer group that end between two polls count.

A join takes the broker seconds, a poll less, so kafka-python keeps the join under way from poll to poll. One that ends while
nobody polls it throws away and begins anew; a caller whose rhythm hits the same moment again and again is never given
a partition (seen: none within a minute, polls of 0.1 s with 0.02 s between them).
"""

from __future__ import annotations

from typing import Any

from kafka.structs import MemberState

__all__ = ["keep_finished_joins"]


def keep_finished_joins(coordinator: Any) -> None:
    """Lets a consumer's `ConsumerCoordinator` that has not joined yet take up joins that ended since it last looked."""
    join = coordinator.join_group_async

    async def take_up_or_join(timeout_ms: float | None = None) -> bool:
        task = coordinator._join_task
        # the state is another one when something has taken the membership away again
        if task is not None and task.succeeded() and coordinator.state is MemberState.REBALANCING:

            async def told_again() -> bytes:
                return bytes(task.value)

            coordinator._join_task = coordinator._manager.call_soon(told_again)  # one that is done would be ignored
        return bool(await join(timeout_ms=timeout_ms))

    coordinator.join_group_async = take_up_or_join
