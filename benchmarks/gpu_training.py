"""The training of benchmarks/gpu.py: the recipe of `cmt train` from the shipped checkpoint, until its minutes are over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt_core.errors import DataError
from cmt_core.retrieval.late_interaction import DocumentKeys
from cmt_core.shipped import CACHE_DIR
from cmt_core.training.command import train_checkpoint
from cmt_core.training.recipe_config import RecipeConfig

if TYPE_CHECKING:
    from benchmarks.gpu import Plan

__all__ = ["configuration", "trained"]

_KEPT_EVERY_S = 5.0


class _NoEncoder:
    """Stands where an encoder would, on a machine that has none: the run's folder brings the keys."""

    d_key = 0

    def document_keys(self, texts: Sequence[str]) -> DocumentKeys:
        raise DataError(f"no encoder finds the neighbours of {len(texts)} windows: put keys.npy into the run's folder")


def configuration(steps: int, groups: int, code_lr: float) -> RecipeConfig:
    """From a trained prefix on; larger steps than a CPU's, and a held-out loss ten times."""
    every = max(1, steps // 10)
    return RecipeConfig(
        prefix_steps=0, code_steps=steps, groups_per_step=groups, code_lr=code_lr, evaluate_every_steps=every
    )


def trained(plan: Plan, keep: Callable[[dict[str, Any]], None]) -> None:
    """Trains, writes RUN/checkpoint, and gives `keep` the figures of each few seconds and of the end."""
    found: dict[str, Any] = {"steps_planned": plan.steps, "groups": plan.groups, "code_lr": plan.code_lr}
    steps: list[dict[str, float]] = []
    kept_at = time.monotonic()

    def on_step(stage: str, step: int, planned: int, figures: dict[str, float]) -> None:
        nonlocal kept_at
        steps.append(figures)
        if time.monotonic() - kept_at >= _KEPT_EVERY_S:
            kept_at = time.monotonic()
            keep(found | _summary(step + 1, steps))

    done = train_checkpoint(
        configuration(plan.steps, plan.groups, plan.code_lr),
        plan.data,
        plan.run,
        plan.run / "checkpoint",
        llm=plan.llm,
        retriever=plan.retriever,
        cache_dir=CACHE_DIR,
        device=plan.device,
        top_k=4,
        start=Path(plan.checkpoint),
        minutes=plan.minutes,
        encoder=_NoEncoder() if plan.retriever == "none" else None,  # type: ignore[arg-type]
        on_step=on_step,
    )
    path = plan.run / "code" / "log.jsonl"
    log = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found |= _summary(json.loads(log[-1])["step"] + 1 if log else 0, steps)
    keep(found | {"finished": done, "checkpoint": (plan.run / "checkpoint" / "config.json").is_file()})


def _summary(done: int, steps: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Steps done in all and now, the seconds of one, and losses as means over a tenth of this session."""
    if not steps:
        return {"steps_done": done, "steps_now": 0}
    part = max(1, len(steps) // 10)
    seconds = sorted(one["seconds"] for one in steps)
    losses = [
        sum(one["loss"] for one in steps[i : i + part]) / len(steps[i : i + part]) for i in range(0, len(steps), part)
    ]
    held = [round(one["held_out"], 4) for one in steps if "held_out" in one]
    return {
        "steps_done": done,
        "steps_now": len(steps),
        "seconds_a_step": seconds[len(seconds) // 2],
        "tokens_per_s": sum(one["tokens_per_s"] * one["seconds"] for one in steps) / sum(seconds),
        "losses": [round(loss, 4) for loss in losses],
        "held_out": held,
    }
