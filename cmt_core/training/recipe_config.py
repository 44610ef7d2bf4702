"""Sizes and rates of a training run, as `cmt train` reaches them: every default of training stands here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cmt_core.config import MemoryConfig

__all__ = ["RECIPE", "TRAINED_MEMORY", "RecipeConfig", "Report"]

Report = Callable[[str, int, int, dict[str, float]], None]  # stage, step, steps, figures


@dataclass(frozen=True, slots=True)
class RecipeConfig:
    """Sizes of a training run. A batch reads `groups_per_step` groups of `group_windows` neighbouring windows.

    `code_steps` are the memory's, whichever method it has. `text_steps` on plain text come before its questions. A step's
    gradient is the mean over `accumulate` batches. With `evaluate_every_steps`, `held_out_documents` are kept out of training.
    `k_cycle` are the documents of a context by turns, `chat_k_cycle` those of a fitted start, of which a step asks at most
    `chat_questions` questions a window: what is kept for their gradients is what fills the memory.
    `code_start` is where a code begins: `start` is the start's own where it has one of this width; else, and with `gradient`, it
    is the PCA in the metric of the answers' gradient (fitting/metric.py), with `variance` that of layers scaled alike.
    `sources`: `open` takes those whose licence lets a checkpoint be shipped, `all` every document of the file.
    """

    prefix_steps: int = 120
    prefix_lr: float = 2e-3
    prefix_windows: int = 8
    code_steps: int = 320
    code_prefix_lr: float = 5e-4
    code_lr: float = 2e-5
    group_windows: int = 4
    groups_per_step: int = 3
    k_cycle: tuple[int, ...] = (1, 4, 2, 4)
    chat_k_cycle: tuple[int, ...] = (1, 1, 2)
    chat_questions: int = 3
    gold_first: float = 0.7
    pca_windows: int = 128
    code_start: str = "start"
    seed: int = 0
    soft_lr: float = 3e-4
    text_steps: int = 0
    accumulate: int = 1
    evaluate_every_steps: int = 0
    held_out_documents: int = 48
    sources: str = "open"


RECIPE = RecipeConfig()
TRAINED_MEMORY = MemoryConfig(aggregation="select", code_width=512, block_tokens=4, code_storage="entropy")
"""What is trained where nothing else is asked for; a MemoryConfig's own defaults are those of checkpoints that don't say.

At the same bytes 512 numbers keep more than 320 (docs/decisions/0172), and close to their entropy far more (0176).
"""
