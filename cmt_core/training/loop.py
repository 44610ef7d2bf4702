"""The training loop: schedule, clipping, a JSONL log, and a state file from which it goes on exactly."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cmt_core.training.batches import Batch

__all__ = ["LoopConfig", "Stage", "run_stage"]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long and how: `steps` optimiser steps, linear warm-up, then cosine down to nothing."""

    steps: int
    warmup_steps: int = 20
    clip: float = 1.0
    save_every_steps: int = 25
    seed: int = 0


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
) -> bool:
    """Trains to `config.steps`, going on from `folder`/state.pt where there is one; true when it got to the end.

    Step n always sees batch_of(n, a generator seeded by n), so a stopped run goes on with the data it would have seen.
    SIGTERM and Ctrl-C save and end early.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, config))
    first = _resume(stage, optimiser, schedule, folder / "state.pt")
    stop = _StopFlag()
    with stop, (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first, config.steps):
            started = time.perf_counter()
            figures = _step(stage, optimiser, batch_of(step, random.Random(f"{config.seed}/{step}")), config.clip)
            schedule.step()
            figures |= {"lr": optimiser.param_groups[0]["lr"], "seconds": time.perf_counter() - started}
            log.write(json.dumps({"step": step, **{key: round(value, 6) for key, value in figures.items()}}) + "\n")
            log.flush()
            report(step, figures)
            if (step + 1) % config.save_every_steps == 0 or stop.raised or step + 1 == config.steps:
                _save(stage, optimiser, schedule, step + 1, folder / "state.pt")
            if stop.raised:
                return False
    return True


def _step(stage: Stage, optimiser: torch.optim.Optimizer, batch: Batch, clip: float) -> dict[str, float]:
    optimiser.zero_grad(set_to_none=True)
    loss, figures = stage.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    for group in optimiser.param_groups:  # clipped apart: the prefix's gradients dwarf the code's
        nn.utils.clip_grad_norm_(group["params"], clip)
    optimiser.step()
    return {"loss": loss.item(), **figures}


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
