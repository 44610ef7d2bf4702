"""Which vLLM this was run with; anything else is refused at the start, in one line."""

from __future__ import annotations

import re

__all__ = ["FIRST", "LAST", "require_supported"]

FIRST, LAST = (0, 29), (0, 33)
"""The oldest and the newest release that the connector's hooks were read or run in."""


def require_supported(version: str) -> None:
    """Raises RuntimeError for a vLLM whose connector interface is another one."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not FIRST <= (int(numbers[1]), int(numbers[2])) <= LAST:
        oldest, newest = (".".join(map(str, one)) for one in (FIRST, LAST))
        raise RuntimeError(f"vLLM {version} is not supported: install one from {oldest} to {newest}")
