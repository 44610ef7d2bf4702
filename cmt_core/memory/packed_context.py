"""What an engine is given of a question's memories: their packed bytes, which of their tokens, and where these stand.

Keys and values never cross this seam; the engine makes them where it computes. Plain values, importable without torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cmt_core.errors import MemoryFormatError

__all__ = ["NOTHING", "PackedContext", "Prefix", "Run", "as_runs"]

Prefix = Literal["reading", "encoding", "none"]
"""Which of a checkpoint's learned prefixes, or the head of its chat template, stands before everything."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens `start` to `stop` (excluded) of the context's memory number `memory`, at `position` and the places behind it."""

    memory: int
    start: int
    stop: int
    position: int


@dataclass(frozen=True, slots=True)
class PackedContext:
    """A prefix of `prefix_tokens` columns at positions 0, 1, ..., then the runs; the prompt follows at `next_position`.

    Positions count from the prefix's first token; a run may stand anywhere before the prompt, since only differences count.
    """

    prefix: Prefix = "none"
    prefix_tokens: int = 0
    memories: tuple[bytes, ...] = ()
    runs: tuple[Run, ...] = ()
    next_position: int = 0

    @property
    def columns(self) -> int:
        """S, the columns of keys and values that the prompt finds before it."""
        return self.prefix_tokens + sum(run.stop - run.start for run in self.runs)

    @property
    def salt(self) -> str:
        """A name of what the columns hold: equal ones may share pages of a cache, others must not."""
        digest = hashlib.sha256()
        for memory in self.memories:
            digest.update(hashlib.sha256(memory).digest())
        placed = [(run.memory, run.start, run.stop, run.position) for run in self.runs]
        digest.update(json.dumps([self.prefix, self.prefix_tokens, placed, self.next_position]).encode())
        return digest.hexdigest()

    def to_params(self) -> dict[str, Any]:
        """The plain form for JSON or msgpack that `from_params` reads."""
        return {
            "prefix": self.prefix,
            "prefix_tokens": self.prefix_tokens,
            "memories": [base64.b64encode(memory).decode() for memory in self.memories],
            "runs": [[run.memory, run.start, run.stop, run.position] for run in self.runs],
            "next_position": self.next_position,
        }

    @classmethod
    def from_params(cls, params: object) -> PackedContext:
        """Reads the plain form. Raises MemoryFormatError for anything else, and for runs that can't be."""
        try:
            if not isinstance(params, Mapping) or set(params) != _KEYS:
                raise ValueError(f"it needs {', '.join(sorted(_KEYS))}")
            context = cls(
                params["prefix"],
                _whole(params["prefix_tokens"]),
                tuple(base64.b64decode(one, validate=True) for one in params["memories"]),
                tuple(Run(*map(_whole, run)) for run in params["runs"]),
                _whole(params["next_position"]),
            )
            context.check()
        except (TypeError, ValueError, binascii.Error) as error:
            raise MemoryFormatError(f"a packed context can't be read: {error}") from None
        return context

    def check(self) -> None:
        """Raises ValueError for a context that can't be; what the memories hold is known where they are decoded."""
        if self.prefix not in ("reading", "encoding", "none"):
            raise ValueError(f"prefix {self.prefix!r} is not known")
        if (self.prefix == "none") != (self.prefix_tokens == 0):
            raise ValueError(f"prefix {self.prefix} of {self.prefix_tokens} tokens")
        used = {run.memory for run in self.runs}
        if used != set(range(len(self.memories))):
            raise ValueError(f"{len(self.memories)} memories, and runs of {sorted(used)}")
        for run in self.runs:
            if not 0 <= run.start < run.stop:
                raise ValueError(f"a run from {run.start} to {run.stop}")
            if run.position < self.prefix_tokens or run.position + run.stop - run.start > self.next_position:
                raise ValueError(f"a run at {run.position} does not stand between the prefix and {self.next_position}")
        if self.next_position < self.prefix_tokens:
            raise ValueError(f"the prompt stands at {self.next_position}, within the prefix")

    def positions(self) -> list[int]:
        """The position of every column, (S,)."""
        return [
            *range(self.prefix_tokens),
            *(run.position + i for run in self.runs for i in range(run.stop - run.start)),
        ]


NOTHING = PackedContext()
"""No column at all: the prompt is read by itself."""

_KEYS = frozenset({"prefix", "prefix_tokens", "memories", "runs", "next_position"})


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def as_runs(places: Sequence[tuple[int, int, int]]) -> tuple[Run, ...]:
    """The fewest runs of columns (memory, token, position), in their order."""
    runs: list[Run] = []
    for memory, token, position in places:
        last = runs[-1] if runs else None
        if last and last.memory == memory and last.stop == token and last.position + last.stop - last.start == position:
            runs[-1] = Run(memory, last.start, token + 1, last.position)
        else:
            runs.append(Run(memory, token, token + 1, position))
    return tuple(runs)
