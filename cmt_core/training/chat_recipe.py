"""From a fitted checkpoint to a trained one: questions, then the code; `cmt train --start FIT` runs it.

As in recipe.py, everything slow is kept in the run's folder, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.data.plain_text import read_texts
from cmt_core.data.qa import by_document
from cmt_core.data.readers import read_examples
from cmt_core.errors import CheckpointError, ConfigError, DataError
from cmt_core.fitting.material import packaged_texts
from cmt_core.fitting.reader import ChatReader
from cmt_core.llm.backbone import Backbone
from cmt_core.retrieval.retriever import Retriever
from cmt_core.training.batches import TrainingWindow, cluster_order
from cmt_core.training.chat_stage import ChatStage
from cmt_core.training.chat_windows import asked_windows, self_asked_windows
from cmt_core.training.distributed import first_process_first
from cmt_core.training.feeds import ClusterFeed, held_out_batches, shuffled
from cmt_core.training.loop import LoopConfig, run_stage
from cmt_core.training.recipe import TrainedParts
from cmt_core.training.recipe_config import RecipeConfig, Report
from cmt_core.training.run_folder import keep_configuration

__all__ = ["ChatRecipe"]


class ChatRecipe:
    """One training run in `folder` from the checkpoint `start`, whose reading is `chat`."""

    def __init__(
        self,
        backbone: Backbone,
        retriever: Retriever,
        memory: MemoryConfig,
        config: RecipeConfig,
        folder: Path,
        report: Report,
        start: Checkpoint,
    ) -> None:
        """Raises ConfigError for what can't be changed of a fitted checkpoint, and CheckpointError for one without a code."""
        if config.text_steps:
            raise ConfigError(
                "text_steps are for a learned prefix: here plain texts are what questions are asked about"
            )
        if memory.code_size != start.config.code_size:
            raise ConfigError("training keeps the fitted code's size: fit one of another size with `cmt fit --bytes`")
        if start.code is None or start.rounding is None:
            raise CheckpointError("the start has no code that could be trained")
        self.backbone, self.retriever, self.memory, self.config = backbone, retriever, memory, config
        self.folder, self.report, self.start = folder, report, start
        self._code, self._rounding = start.code, start.rounding
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, qa_file: Path | None, texts: Path | None = None) -> TrainedParts | None:
        """Trains on the questions of `qa_file`, else on the LLM's own about `texts` (the packaged ones when None).

        None when stopped early (run it to go on). Raises ConfigError when the folder holds a run that was begun with anything
        else, DataError for data that can't be used.
        """
        keep_configuration(self.folder, self._configuration(qa_file, texts))
        torch.manual_seed(self.config.seed)
        reader = ChatReader(self.backbone, self.memory.instruction)
        windows = self._windows(reader, qa_file, texts)
        held = self._held_out(windows)
        windows = windows[len(held) :]
        config, device = self.config, self.backbone.device
        code = self._code.to(device).requires_grad_(True)
        stage = ChatStage(self.backbone, code, self._rounding.to(device), self.start.encoding_prefix)
        clusters = cluster_order(self._keys(windows), config.group_windows, config.seed)
        if not clusters:
            raise DataError(f"{len(windows)} windows are too few for groups of {config.group_windows}")
        asked, pad_id = config.chat_questions, self._pad_id
        feed = ClusterFeed(windows, clusters, config.groups_per_step, config.chat_k_cycle, None, pad_id, device, asked)
        loop = LoopConfig(
            config.code_steps,
            seed=config.seed,
            accumulate=config.accumulate,
            evaluate_every_steps=config.evaluate_every_steps,
        )
        batches = held_out_batches(held, config.prefix_windows, pad_id, device, asked)

        def on_step(step: int, figures: dict[str, float]) -> None:
            self.report("code", step, config.code_steps, figures)

        groups: Any = stage.parameter_groups(config.code_lr)
        if not run_stage(stage, groups, feed, loop, self.folder / "code", on_step, batches):
            return None
        start = self.start
        return TrainedParts(start.encoding_prefix, start.reading_prefix, code, self._rounding, start.select)

    def _windows(self, reader: ChatReader, qa_file: Path | None, texts: Path | None) -> list[TrainingWindow]:
        config, size = self.config, self.memory.window_tokens
        if qa_file is not None:
            documents = by_document(read_examples(qa_file))
            order = shuffled(len(documents), config.seed)
            windows = asked_windows([documents[number] for number in order[: self._wanted]], reader, size)
            if not windows:
                raise DataError(f"{qa_file} has no question whose answer stands in its document")
            return windows

        def told(done: int, total: int) -> None:
            self.report("questions", done - 1, total, {})

        with first_process_first():
            rows = read_texts(texts or packaged_texts())
            path = self.folder / "questions.jsonl"
            return self_asked_windows(rows, reader, size, self._wanted, config.seed, path, told)

    @property
    def _wanted(self) -> int:
        """As many windows as the steps can read, and those that are held out."""
        config = self.config
        read = config.code_steps * config.accumulate * config.groups_per_step * config.group_windows
        return read + (config.held_out_documents if config.evaluate_every_steps else 0)

    def _held_out(self, windows: list[TrainingWindow]) -> list[TrainingWindow]:
        kept = min(self.config.held_out_documents, len(windows) // 4) if self.config.evaluate_every_steps else 0
        return windows[:kept]

    def _configuration(self, qa_file: Path | None, texts: Path | None) -> dict[str, Any]:
        """All that decides what the run's folder will hold."""
        code = self._code.encoder.detach().float().cpu().numpy().tobytes()
        return {
            "llm": self.backbone.fingerprint(torch.bfloat16),
            "start": hashlib.sha256(code).hexdigest(),
            "questions": str(qa_file) if qa_file else None,
            "texts": str(texts) if texts else None,
            **dataclasses.asdict(self.config),
            **self.memory.to_dict(),
        }

    def _keys(self, windows: list[TrainingWindow]) -> NDArray[np.float16]:
        return self.retriever.document_keys([window.reading for window in windows]).vectors

    @property
    def _pad_id(self) -> int:
        return int(self.backbone.tokenizer.eos_token_id)
