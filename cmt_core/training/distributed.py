"""Several training processes as one, through torch.distributed where somebody has set it up; one process needs nothing.

Each process trains on its own micro-batches, gradients are averaged, and the first process alone writes. The run's folder
must be one that all processes see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["any_process", "average_gradients", "first_process_first", "rank", "share_start", "world_size"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 for the first."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _active() else 1


@contextmanager
def first_process_first() -> Iterator[None]:
    """Runs the block in the first process, and then in all others, which find what it has written."""
    if _active() and rank() > 0:
        dist.barrier()
    yield
    if _active() and rank() == 0:
        dist.barrier()


def share_start(stage: nn.Module) -> None:
    """Gives every process the first one's parameters and buffers."""
    if _active():
        for tensor in stage.state_dict().values():
            dist.broadcast(tensor, src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes; one that a process does not have counts as zero."""
    if not _active():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: all of them stop at the same step."""
    if not _active():
        return flag
    raised: Tensor = torch.tensor(int(flag), device=device)
    dist.all_reduce(raised)
    return bool(raised)
