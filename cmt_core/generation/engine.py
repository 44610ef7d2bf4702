"""The seam between what knows questions and what computes tokens: packed memories with the chosen runs, the prompt's tokens and
sampling go in, a stream of tokens comes out. Keys and values never cross it; importable without torch.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cmt_core.generation.query import GREEDY, Sampling
from cmt_core.memory.packed_context import PackedContext

__all__ = ["EngineLost", "Look", "PackedRequest", "StreamEngine", "StreamedAnswer", "Written"]


@dataclass(frozen=True, slots=True)
class PackedRequest:
    """A prompt (token ids) behind a packed context, to be continued by at most `max_new_tokens`, or up to one of `stop_ids`.

    With texts that it is `spelled_from` the answer is a span of one of them (cmt_core/generation/spelling.py).
    """

    context: PackedContext
    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_ids: frozenset[int]
    sampling: Sampling = GREEDY
    spelled_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """Words (token ids) whose log-probability is wanted behind a context and `head`, at least one token, which does not count."""

    context: PackedContext
    head: tuple[int, ...]
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """The next tokens of an answer, without the one that ended it; `finish` comes with the last of them."""

    tokens: tuple[int, ...]
    finish: Literal["stop", "length"] | None = None


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """An answer under way: the tokens it was asked with, its memories' shares of the prior, and what is written of it.

    `together` are the memories that its question takes together, in their order; empty where it takes no two.
    """

    prompt_tokens: int
    weights: list[float]
    pieces: AsyncGenerator[Written, None]
    together: tuple[int, ...] = ()


class EngineLost(Exception):
    """The engine computes nothing any more; another one may answer."""


class StreamEngine(Protocol):
    """What computes: answers and looks run side by side, and what one of them raises is its own alone.

    ValueError for a request that can't be, MemoryFormatError for memories that can't be read, EngineLost for all at once.
    """

    def stream(self, request: PackedRequest) -> AsyncGenerator[Written, None]:
        """The answer as it is written; closing the iterator ends it."""
        ...

    async def log_likelihoods(self, looks: Sequence[Look]) -> list[float]:
        """The log-probability in nats of each look's words."""
        ...
