"""The `kv_code` recipe from data to checkpoint: prefix on text, PCA, bits, then the code; `cmt train` runs it.

Everything slow is kept in the run's folder, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.aggregation import Select
from cmt_core.backbone import Backbone
from cmt_core.checkpoint import Checkpoint
from cmt_core.compressor import KVCode
from cmt_core.config import MemoryConfig
from cmt_core.data.qa import by_document, read_qa
from cmt_core.data.training_mix import OPEN_SOURCES, choose_documents
from cmt_core.errors import ConfigError
from cmt_core.prompt import INSTRUCTION
from cmt_core.quantiser import Quantiser
from cmt_core.retriever import Retriever
from cmt_core.training.batches import Batch, TrainingWindow, cluster_order, collate, training_windows
from cmt_core.training.loop import LoopConfig, run_stage
from cmt_core.training.stages import CodeStage, PrefixStage

__all__ = ["Recipe", "RecipeConfig", "TrainedParts"]

Report = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class RecipeConfig:
    """Sizes of a training run. A step reads `groups_per_step` groups of `group_windows` neighbouring windows."""

    prefix_steps: int = 160
    prefix_lr: float = 2e-3
    prefix_windows: int = 8
    code_steps: int = 500
    code_prefix_lr: float = 5e-4
    code_lr: float = 2e-5
    group_windows: int = 4
    groups_per_step: int = 3
    k_cycle: tuple[int, ...] = (1, 4, 2, 4)
    gold_first: float = 0.7
    pca_windows: int = 128
    seed: int = 0


@dataclass(slots=True)
class TrainedParts:
    """What a checkpoint is made of."""

    encoding_prefix: Tensor
    reading_prefix: Tensor
    code: KVCode
    quantiser: Quantiser
    select: Select | None


class Recipe:
    """One training run in `folder`; `run` does all stages or goes on with them.

    `start` is a checkpoint to begin from: its prefix instead of the instruction's rows, and its code instead of the PCA (also
    behind a prefix trained further: docs/log.md has the figures). The reading prefix starts from the start's own where the
    encoding prefix stays as it was.
    """

    def __init__(
        self,
        backbone: Backbone,
        retriever: Retriever,
        memory: MemoryConfig,
        config: RecipeConfig,
        folder: Path,
        report: Report,
        start: Checkpoint | None = None,
    ) -> None:
        self.backbone, self.retriever = backbone, retriever
        self.start = start
        self.memory, self.config = memory, config
        self.folder, self.report = folder, report
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, qa_file: Path) -> TrainedParts | None:
        """Trains on the open sources of `qa_file`; None when stopped early (run it again to go on)."""
        torch.manual_seed(self.config.seed)
        windows = self._windows(qa_file)
        prefix = self._prefix_stage(windows)
        return None if prefix is None else self._code_stage(windows, prefix)

    def _windows(self, qa_file: Path) -> list[TrainingWindow]:
        documents = choose_documents(by_document(read_qa(qa_file)), OPEN_SOURCES, self.config.seed)
        tokenizer = self.backbone.tokenizer

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        return training_windows(documents, encode, tokenizer.eos_token_id, self.memory.window_tokens)

    def _prefix_stage(self, windows: list[TrainingWindow]) -> Tensor | None:
        config = self.config
        first = self.start.encoding_prefix if self.start else self._instruction_rows()
        stage = PrefixStage(self.backbone, first.to(self.backbone.device), self.memory.window_tokens)
        size = config.prefix_windows
        order = _shuffled(len(windows), config.seed)

        def batch_of(step: int, rng: random.Random) -> Batch:
            rows = [order[(step * size + i) % len(order)] for i in range(size)]
            return collate([[windows[row]] for row in rows], 1, self._pad_id, rng).to(self.backbone.device)

        loop = LoopConfig(config.prefix_steps, seed=config.seed)
        groups = stage.parameter_groups(config.prefix_lr)
        done = run_stage(stage, groups, batch_of, loop, self.folder / "prefix", self._reporter("prefix", loop.steps))
        return stage.prefix.detach() if done else None

    def _code_stage(self, windows: list[TrainingWindow], prefix: Tensor) -> TrainedParts | None:
        config = self.config
        code, quantiser, reading = self._start_code(windows, prefix)
        select = self._start_select()
        stage = CodeStage(self.backbone, code, quantiser, prefix, self.memory.window_tokens, reading, select)
        clusters = cluster_order(self._keys(windows), config.group_windows, config.seed)
        size = config.groups_per_step

        def batch_of(step: int, rng: random.Random) -> Batch:
            chosen = [clusters[(step * size + i) % len(clusters)] for i in range(size)]
            k = config.k_cycle[step % len(config.k_cycle)]
            first = None if select is None else config.gold_first
            batch = collate([[windows[row] for row in group] for group in chosen], k, self._pad_id, rng, first)
            return batch.to(self.backbone.device)

        loop = LoopConfig(config.code_steps, seed=config.seed)
        groups = stage.parameter_groups(config.code_prefix_lr, config.code_lr)
        done = run_stage(stage, groups, batch_of, loop, self.folder / "code", self._reporter("code", loop.steps))
        return TrainedParts(prefix, stage.reading_prefix.detach(), code, quantiser, select) if done else None

    def _start_select(self) -> Select | None:
        if self.memory.aggregation != "select":
            return None
        select = Select(self.backbone.shape, self.backbone.query_heads, self.memory.context_vectors)
        if self.start and self.start.select:
            select.load_state_dict(self.start.select.state_dict())
        return select.to(self.backbone.device)

    @torch.no_grad()
    def _instruction_rows(self) -> Tensor:
        """Keys and values (p, X) of the instruction's first p tokens: where the prefix starts."""
        ids = self.backbone.tokenizer(INSTRUCTION, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([ids[: self.memory.prefix_tokens]], device=self.backbone.device)
        nothing = torch.zeros(0, self.backbone.shape.width, dtype=self.backbone.dtype, device=self.backbone.device)
        return self.backbone.read(tokens, torch.ones_like(tokens), nothing)[0].float()

    def _start_code(self, windows: list[TrainingWindow], prefix: Tensor) -> tuple[KVCode, Quantiser, Tensor]:
        """Code, quantiser and reading prefix to train on."""
        device = self.backbone.device
        if self.start:
            if self.start.code is None or self.start.quantiser is None:
                raise ConfigError("kv_code can't be trained further from a checkpoint of soft_tokens")
            reading = prefix if self.config.prefix_steps else self.start.reading_prefix.to(device)
            return self.start.code.to(device).requires_grad_(True), self.start.quantiser.to(device), reading
        return *self._pca(windows, prefix), prefix

    @torch.no_grad()
    def _pca(self, windows: list[TrainingWindow], prefix: Tensor) -> tuple[KVCode, Quantiser]:
        """PCA of the keys and values of sample windows, and bits by the variance of its components."""
        path, device = self.folder / "pca.pt", self.backbone.device
        code = KVCode(self.backbone.shape, self.memory.code_width).to(device)
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=device)
            code.load_state_dict(state["code"])
            return code, self._quantiser(state["sigma"])
        sample = _shuffled(len(windows), self.config.seed + 1)[: self.config.pca_windows]
        rows = []
        for start in range(0, len(sample), 8):
            chosen = [[windows[i]] for i in sample[start : start + 8]]
            batch = collate(chosen, 1, self._pad_id, random.Random(0)).to(device)
            exact = self.backbone.read(batch.ids, batch.mask, prefix.to(self.backbone.dtype))
            rows.append(exact[batch.mask.bool()].float())
        sigma = code.start_from_pca(torch.cat(rows), self.backbone.shape)
        torch.save({"code": code.state_dict(), "sigma": sigma}, path)
        return code, self._quantiser(sigma)

    def _quantiser(self, sigma: Tensor) -> Quantiser:
        fitted = Quantiser.fit(sigma.double().cpu().numpy(), self.memory.bits_per_token)
        return fitted.to(self.backbone.device)

    def _keys(self, windows: list[TrainingWindow]) -> NDArray[np.float16]:
        path = self.folder / "keys.npy"
        if path.exists():
            loaded: NDArray[np.float16] = np.load(path)
            if len(loaded) == len(windows):
                return loaded
        keys = self.retriever.keys([window.reading for window in windows])
        np.save(path, keys)
        return keys

    def _reporter(self, stage: str, steps: int) -> Callable[[int, dict[str, float]], None]:
        def report(step: int, figures: dict[str, Any]) -> None:
            self.report(stage, step, steps, figures)

        return report

    @property
    def _pad_id(self) -> int:
        return int(self.backbone.tokenizer.eos_token_id)


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
