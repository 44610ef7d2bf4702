"""The training loop: schedule, accumulation, clipping, held-out loss, a JSONL log, and a state to go on from exactly."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cmt_core.training.batches import Batch
from cmt_core.training.distributed import any_process, average_gradients, rank, share_start, world_size

__all__ = ["LoopConfig", "Stage", "run_stage"]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long and how: `steps` optimiser steps, linear warm-up, then cosine down to nothing.

    A step's gradient is the mean over `accumulate` batches of each process. The held-out loss is taken every
    `evaluate_every_steps` steps and after the last (0: never). At `until`, by `time.monotonic`, it saves and ends early.
    """

    steps: int
    warmup_steps: int = 20
    clip: float = 1.0
    save_every_steps: int = 25
    seed: int = 0
    accumulate: int = 1
    evaluate_every_steps: int = 0
    until: float | None = None


class Stage(Protocol):
    """What the loop needs of a stage."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]: ...
    def parameters(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def run_stage(
    stage: Stage,
    groups: list[dict[str, Any]],
    batch_of: Callable[[int, random.Random], Batch],
    config: LoopConfig,
    folder: Path,
    report: Callable[[int, dict[str, float]], None],
    held_out: Sequence[Batch] = (),
) -> bool:
    """Trains to `config.steps`, going on from `folder`/state.pt where there is one; true when it got to the end.

    The n-th batch is always batch_of(n, a generator seeded by n), so a stopped run goes on with the data it would have seen;
    several processes share the numbers out (distributed.py). SIGTERM and Ctrl-C save and end early. `held_out` are batches
    whose answer loss is reported as `held_out`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, config))
    first = _resume(stage, optimiser, schedule, folder / "state.pt")
    if isinstance(stage, nn.Module):
        share_start(stage)
    device = optimiser.param_groups[0]["params"][0].device
    stop = _StopFlag()
    with stop:
        for step in range(first, config.steps):
            started = time.perf_counter()
            figures, tokens = _step(stage, optimiser, _batches(batch_of, step, config), config.clip)
            schedule.step()
            seconds = time.perf_counter() - started
            figures |= {"lr": optimiser.param_groups[0]["lr"], "seconds": seconds, "tokens_per_s": tokens / seconds}
            last = step + 1 == config.steps
            every = config.evaluate_every_steps
            if held_out and every and rank() == 0 and ((step + 1) % every == 0 or last):
                figures["held_out"] = _held_out_loss(stage, held_out)
            over = config.until is not None and time.monotonic() >= config.until and not last
            stopped = any_process(stop.raised or over, device)
            if rank() == 0:
                _log(folder / "log.jsonl", step, figures)
                report(step, figures)
                stopped = stopped or (stop.raised and world_size() == 1)  # raised while reporting
                if (step + 1) % config.save_every_steps == 0 or stopped or last:
                    _save(stage, optimiser, schedule, step + 1, folder / "state.pt")
            if stopped:
                return False
    return True


def _batches(
    batch_of: Callable[[int, random.Random], Batch], step: int, config: LoopConfig
) -> list[Callable[[], Batch]]:
    """This process's batches of a step; made one by one, so that only one is held."""
    numbers = [(step * config.accumulate + i) * world_size() + rank() for i in range(config.accumulate)]
    return [lambda n=n: batch_of(n, random.Random(f"{config.seed}/{n}")) for n in numbers]  # type: ignore[misc]


def _step(
    stage: Stage, optimiser: torch.optim.Optimizer, batches: Sequence[Callable[[], Batch]], clip: float
) -> tuple[dict[str, float], int]:
    """Figures, each the mean of the batches that have it, and the tokens read by all processes."""
    optimiser.zero_grad(set_to_none=True)
    seen: dict[str, list[float]] = {}
    tokens = 0
    for make in batches:
        batch = make()
        loss, figures = stage.loss(batch)
        (loss / len(batches) if len(batches) > 1 else loss).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss.item(), **figures}.items():
            seen.setdefault(name, []).append(value)
        tokens += batch.tokens if isinstance(batch, Batch) else 0
    for group in optimiser.param_groups:  # clipped apart: the prefix's gradients dwarf the code's
        average_gradients(group["params"])
        nn.utils.clip_grad_norm_(group["params"], clip)
    optimiser.step()
    return {name: sum(values) / len(values) for name, values in seen.items()}, tokens * world_size()


@torch.no_grad()
def _held_out_loss(stage: Stage, batches: Sequence[Batch]) -> float:
    """Mean answer log-loss in nats per answer token."""
    losses = []
    for batch in batches:
        _, figures = stage.loss(batch)
        losses.append(next(value for name, value in figures.items() if name.startswith("answer")))
    return sum(losses) / len(losses)


def _log(path: Path, step: int, figures: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps({"step": step, **{key: round(value, 6) for key, value in figures.items()}}) + "\n")


def _factor(step: int, config: LoopConfig) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _save(stage: Stage, optimiser: Any, schedule: Any, step: int, path: Path) -> None:
    state = {
        "step": step,
        "stage": stage.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    scratch.replace(path)


def _resume(stage: Stage, optimiser: Any, schedule: Any, path: Path) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    stage.load_state_dict(state["stage"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["torch_rng"])
    return int(state["step"])


class _StopFlag:
    """Turns SIGTERM and Ctrl-C into a flag while it is open (in the main thread; elsewhere it stays down)."""

    def __init__(self) -> None:
        self.raised = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _StopFlag:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._raise)
            except ValueError:  # not the main thread
                return self
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
