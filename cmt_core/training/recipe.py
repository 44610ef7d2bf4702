"""A recipe from data to checkpoint: prefix on text, then (plain text and) questions for the memory; `cmt train` runs it.

The memory is `kv_code` (PCA, bits, then the code) or `soft_tokens` with its parts, as the configuration says. Everything slow
is kept in the run's folder, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.data.plain_text import read_texts
from cmt_core.data.qa import QuestionedDocument, by_document
from cmt_core.data.readers import read_examples
from cmt_core.data.training_mix import OPEN_SOURCES, Source, choose_documents
from cmt_core.errors import ConfigError, DataError
from cmt_core.fitting.metric import GradientMetric
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.tokens import Tokens
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.rounding import FittedRounding, fitted_rounding, stored_rounding
from cmt_core.memory.soft.alignment_maps import LowRankMaps
from cmt_core.memory.soft.soft_memory import SoftMemory
from cmt_core.reading.aggregation import Select
from cmt_core.reading.alignment import place
from cmt_core.retrieval.retriever import Retriever
from cmt_core.text.prompt import INSTRUCTION
from cmt_core.training.batches import Batch, TrainingWindow, cluster_order, collate, some_questions, training_windows
from cmt_core.training.distributed import first_process_first, rank
from cmt_core.training.feeds import ClusterFeed, Feed, WindowFeed, held_out_batches, shuffled
from cmt_core.training.loop import LoopConfig, run_stage
from cmt_core.training.objective import answer_loss
from cmt_core.training.recipe_config import RecipeConfig, Report
from cmt_core.training.run_folder import keep_configuration
from cmt_core.training.soft_stage import SoftStage, question_of
from cmt_core.training.stages import CodeStage, PrefixStage, answer_questions, targets_of
from cmt_core.training.text_windows import text_windows

__all__ = ["Recipe", "RecipeConfig", "Report", "TrainedParts"]

_CODE_STARTS = ("start", "gradient", "variance")
_INPUT_WINDOWS = 48  # a token has L * D numbers of its layers' inputs
Groups = Callable[[], list[dict[str, Any]]]  # called anew for each stage: an optimiser writes into its groups


@dataclass(slots=True)
class TrainedParts:
    """What a checkpoint is made of: a code with its rounding (and ψ), or soft tokens' parts."""

    encoding_prefix: Tensor
    reading_prefix: Tensor
    code: KVCode | None = None
    rounding: FittedRounding | None = None
    select: Select | None = None
    soft: SoftMemory | None = None


class Recipe:
    """One training run in `folder`; `run` does all stages or goes on with them.

    `start` is a checkpoint to begin from: its prefix instead of the instruction's rows, and its code, where it has as many
    numbers, instead of the PCA (also behind a prefix trained further: docs/log.md has the figures). The reading prefix starts
    from the start's own where the encoding prefix stays as it was. A start of another method gives its encoding prefix alone.
    `so_far` are the parts as they stand when a run was stopped while the memory was trained.
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
        until: float | None = None,
    ) -> None:
        """At `until`, in seconds of `time.monotonic`, the run stops as if it had been told to.

        Raises ConfigError for a code_start that is not known.
        """
        self.backbone, self.retriever = backbone, retriever
        self.start = start
        self.memory, self.config = memory, config
        self.folder, self.report = folder, report
        self.held_out: list[TrainingWindow] = []
        self.texts: list[TrainingWindow] = []
        self.until = until
        self.so_far: TrainedParts | None = None
        if config.code_start not in _CODE_STARTS:
            raise ConfigError(f"code_start is one of {', '.join(_CODE_STARTS)}, not {config.code_start!r}")
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, qa_file: Path, texts: Path | None = None) -> TrainedParts | None:
        """Trains on the open sources of `qa_file`, and first on plain `texts`; None when stopped early (run it to go on).

        Raises ConfigError when the folder holds a run that was begun with anything else.
        """
        keep_configuration(self.folder, self._configuration(qa_file, texts))
        torch.manual_seed(self.config.seed)
        windows = self._windows(qa_file, texts)
        prefix = self._prefix_stage(windows)
        if prefix is None:
            return None
        if self.memory.method == "soft_tokens":
            return self._soft_stage(windows, prefix)
        return self._code_stage(windows, prefix)

    def prepare(self, qa_file: Path, texts: Path | None = None) -> int:
        """Finds what only an encoder can, the windows' keys, for a run of this configuration elsewhere; how many windows."""
        windows = self._windows(qa_file, texts)
        self._keys(windows)
        return len(windows)

    def _configuration(self, qa_file: Path, texts: Path | None) -> dict[str, Any]:
        """All that decides what the run's folder will hold."""
        start = self.start
        return {
            "llm": self.backbone.fingerprint(torch.bfloat16),
            "start": hashlib.sha256(start.reading_prefix.float().cpu().numpy().tobytes()).hexdigest()
            if start
            else None,
            "questions": str(qa_file),
            "texts": str(texts) if texts else None,
            **dataclasses.asdict(self.config),
            **self.memory.to_dict(),
        }

    def _windows(self, qa_file: Path, texts: Path | None) -> list[TrainingWindow]:
        if self.config.text_steps and texts is None:
            raise ConfigError("text_steps need plain texts to train on")
        documents = self._documents(qa_file)
        encode, size = Tokens(self.backbone).ids, self.memory.window_tokens
        kept = min(self.config.held_out_documents, len(documents) // 4) if self.config.evaluate_every_steps else 0
        self.held_out = training_windows(documents[:kept], encode, self._pad_id, size)
        if texts is not None and self.config.text_steps:
            self.texts = text_windows(read_texts(texts), encode, self._pad_id, size)
            if not self.texts:
                raise DataError(f"{texts} holds no text")
        return training_windows(documents[kept:], encode, self._pad_id, size)

    def _documents(self, qa_file: Path) -> list[QuestionedDocument]:
        found = by_document(read_examples(qa_file))
        sources = OPEN_SOURCES
        if self.config.sources == "all":
            sources = {document.source: Source("as its file says") for document in found}
        chosen = choose_documents(found, sources, self.config.seed)
        if not chosen:
            raise DataError(f"{qa_file} has no documents of the sources known here; --set sources=all takes any")
        return chosen

    def _prefix_stage(self, windows: list[TrainingWindow]) -> Tensor | None:
        config, device = self.config, self.backbone.device
        first = self.start.encoding_prefix if self.start else self._instruction_rows()
        stage = PrefixStage(self.backbone, first.to(device), self.memory.window_tokens)
        feed = WindowFeed(windows, config.prefix_windows, config.seed, self._pad_id, device)
        done = self._loop("prefix", stage, lambda: stage.parameter_groups(config.prefix_lr), feed, config.prefix_steps)
        return stage.prefix.detach() if done else None

    def _code_stage(self, windows: list[TrainingWindow], prefix: Tensor) -> TrainedParts | None:
        config, memory = self.config, self.memory
        code, rounding, reading = self._start_code(windows, prefix)
        select = self._start_select()
        weight = memory.decoding_weight
        stage = CodeStage(self.backbone, code, rounding, prefix, memory.window_tokens, reading, select, weight)
        done = self._train_memory(
            "code", stage, lambda: stage.parameter_groups(config.code_prefix_lr, config.code_lr), windows
        )
        self.so_far = TrainedParts(prefix, stage.reading_prefix.detach(), code, rounding, select)
        return self.so_far if done else None

    def _soft_stage(self, windows: list[TrainingWindow], prefix: Tensor) -> TrainedParts | None:
        config = self.config
        soft = self._start_soft(windows, prefix)
        kept = self.start if self.start and self.start.soft and not config.prefix_steps else None
        reading = kept.reading_prefix if kept else prefix
        stage = SoftStage(self.backbone, soft, prefix, reading.to(self.backbone.device))
        done = self._train_memory(
            "soft",
            stage,
            lambda: stage.parameter_groups(config.code_prefix_lr, config.soft_lr, config.code_lr),
            windows,
        )
        self.so_far = TrainedParts(prefix, stage.reading_prefix.detach(), soft=soft)
        return self.so_far if done else None

    def _train_memory(self, name: str, stage: Any, groups: Groups, windows: list[TrainingWindow]) -> bool:
        """Plain text where there is some, then questions with distractors; true when it got to the end."""
        config, device = self.config, self.backbone.device
        most = 1 if self.memory.method == "soft_tokens" else None  # a question conditions what soft tokens are taught
        first = None
        if most or self.memory.aggregation == "select":
            first = config.gold_first
        if self.texts:
            feed = WindowFeed(self.texts, config.prefix_windows, config.seed, self._pad_id, device, most)
            if not self._loop("text", stage, groups, feed, config.text_steps, most):
                return False
        clusters = cluster_order(self._keys(windows), config.group_windows, config.seed)
        questions = ClusterFeed(
            windows, clusters, config.groups_per_step, config.k_cycle, first, self._pad_id, device, most
        )
        return self._loop(name, stage, groups, questions, config.code_steps, most)

    def _loop(self, name: str, stage: Any, groups: Groups, feed: Feed, steps: int, most: int | None = None) -> bool:
        config = self.config
        loop = LoopConfig(
            steps,
            seed=config.seed,
            accumulate=config.accumulate,
            evaluate_every_steps=config.evaluate_every_steps,
            until=self.until,
        )
        size = config.prefix_windows
        held = held_out_batches(self.held_out, size, self._pad_id, self.backbone.device, most)

        def report(step: int, figures: dict[str, float]) -> None:
            self.report(name, step, steps, figures)

        return run_stage(stage, groups(), feed, loop, self.folder / name, report, held)

    def _start_select(self) -> Select | None:
        if self.memory.aggregation != "select":
            return None
        select = Select(self.backbone.shape, self.backbone.query_heads, self.memory.context_vectors)
        if self.start and self.start.select:
            select.load_state_dict(self.start.select.state_dict())
        return select.to(self.backbone.device)

    def _start_soft(self, windows: list[TrainingWindow], prefix: Tensor) -> SoftMemory:
        torch.manual_seed(self.config.seed)  # again: a run that goes on here has another past than an unbroken one
        soft = SoftMemory(self.memory, self.backbone.shape).to(self.backbone.device)
        if self.start and self.start.soft:
            soft.load_state_dict(self.start.soft.state_dict())
        else:
            self._start_alignment(soft, windows, prefix)
            self._start_matching(soft, windows, prefix)
        return soft

    @torch.no_grad()
    def _start_matching(self, soft: SoftMemory, windows: list[TrainingWindow], prefix: Tensor) -> None:
        """Shows self-matching sample windows' memories and questions."""
        if soft.matching is None:
            return
        prefix = prefix.to(self.backbone.dtype)
        questions, memories = [], []
        for batch in self._sample_batches(windows):
            _, source, last = self.backbone.read_at_depth(batch.ids, batch.mask, prefix, soft.source_layer)
            memories.append(soft.compress(self.backbone, batch.ids, batch.mask, source, last))
            questions.append(question_of(self.backbone, prefix, batch, soft.source_layer)[0])
        soft.matching.start_from(torch.cat(questions), torch.cat(memories))

    def _start_alignment(self, soft: SoftMemory, windows: list[TrainingWindow], prefix: Tensor) -> None:
        """Fits π to what the LLM has at the tokens of sample windows, from what Θ reads there."""
        backbone, D = self.backbone, self.backbone.width
        low_rank = isinstance(soft.alignment, LowRankMaps)

        def with_source(ids: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
            rows, source, _ = backbone.read_at_depth(ids, mask, prefix, soft.source_layer)
            wanted = backbone.layer_inputs(ids, mask, prefix).flatten(2) if low_rank else rows
            return torch.cat([source, wanted], dim=-1)

        few = windows[:_INPUT_WINDOWS] if low_rank else windows
        source, wanted = torch.cat(self._sample(few, prefix, with_source)).tensor_split([D], dim=-1)
        soft.alignment.start_from(source, wanted.view(len(wanted), -1, D) if low_rank else wanted)

    @torch.no_grad()
    def _instruction_rows(self) -> Tensor:
        """Keys and values (p, X) of the instruction's first p tokens: where the prefix starts."""
        ids = Tokens(self.backbone).ids(INSTRUCTION)
        tokens = torch.tensor([ids[: self.memory.prefix_tokens]], device=self.backbone.device)
        nothing = torch.zeros(0, self.backbone.shape.width, dtype=self.backbone.dtype, device=self.backbone.device)
        return self.backbone.read(tokens, torch.ones_like(tokens), nothing)[0].float()

    def _start_code(self, windows: list[TrainingWindow], prefix: Tensor) -> tuple[KVCode, FittedRounding, Tensor]:
        """Code, rounding and reading prefix to train on."""
        device = self.backbone.device
        begun = self.start if self.start and self.start.code else None
        reading = begun.reading_prefix.to(device) if begun and not self.config.prefix_steps else prefix
        kept = begun is not None and self.config.code_start == "start"
        if begun and begun.code and kept and begun.config.code_width == self.memory.code_width:
            code = begun.code.to(device)
            if begun.rounding and begun.config.code_size == self.memory.code_size:
                return code.requires_grad_(True), begun.rounding.to(device), reading
            with first_process_first():
                return code.requires_grad_(True), self._fitted(code, windows, prefix), reading
        with first_process_first():
            code = self._pca(windows, prefix)
            return code, self._fitted(code, windows, prefix), reading

    def _pca(self, windows: list[TrainingWindow], prefix: Tensor) -> KVCode:
        """The PCA of the keys and values of sample windows."""
        path, device = self.folder / "pca.pt", self.backbone.device
        code = KVCode(self.backbone.shape, self.memory.code_width).to(device)
        if path.exists():
            code.load_state_dict(torch.load(path, weights_only=True, map_location=device))
            return code
        weights = None
        if self.config.code_start != "variance":
            weights = self._gradient_weights(windows, prefix.to(self.backbone.dtype)).to(device)
        code.start_from_pca(torch.cat(self._sample(windows, prefix, self.backbone.read)), self.backbone.shape, weights)
        torch.save(code.state_dict(), path)
        return code

    @torch.no_grad()
    def _fitted(self, code: KVCode, windows: list[TrainingWindow], prefix: Tensor) -> FittedRounding:
        """By how much the code's numbers, or those of its blocks, vary in sample windows."""
        path, memory = self.folder / "rounding.pt", self.memory
        if not path.exists():

            def read(ids: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
                return code.encode(self.backbone.read(ids, mask, prefix))

            torch.save(fitted_rounding(memory, self._sample(windows, prefix, read)).tensors(), path)
        state = torch.load(path, weights_only=True, map_location="cpu")
        return stored_rounding(memory, state).to(self.backbone.device)

    def _gradient_weights(self, windows: Sequence[TrainingWindow], prefix: Tensor) -> Tensor:
        """What each number of a token counts for the answers to the sample windows' questions, (X,)."""
        found, backbone = GradientMetric(self.backbone.shape), self.backbone
        for batch in self._sample_batches(windows):
            with torch.no_grad():
                exact = backbone.read(batch.ids, batch.mask, prefix)
            exact.requires_grad_(True)
            context = place(backbone, prefix, exact[:, None], batch.mask[:, None], self.memory.window_tokens)
            _, logits = answer_questions(backbone, context, batch.questions)
            (gradient,) = torch.autograd.grad(answer_loss(logits, targets_of(batch)), exact)
            for own, mask in zip(gradient, batch.mask.bool(), strict=True):
                found.add(own[mask])
        return found.weights

    @torch.no_grad()
    def _sample(
        self, windows: Sequence[TrainingWindow], prefix: Tensor, read: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        """What `read` gives of each sample window's t tokens behind the prefix, (t, ...) in fp32."""
        texts: list[Tensor] = []
        for batch in self._sample_batches(windows):
            exact = read(batch.ids, batch.mask, prefix.to(self.backbone.dtype))
            texts.extend(row[mask].float() for row, mask in zip(exact, batch.mask.bool(), strict=True))
        return texts

    def _sample_batches(self, windows: Sequence[TrainingWindow]) -> Iterator[Batch]:
        """`pca_windows` seeded windows, each with one of its questions."""
        sample = shuffled(len(windows), self.config.seed + 1)[: self.config.pca_windows]
        rng = random.Random(self.config.seed)
        for start in range(0, len(sample), 8):
            chosen = [[some_questions(windows[i], 1, rng)] for i in sample[start : start + 8]]
            yield collate(chosen, 1, self._pad_id, rng).to(self.backbone.device)

    def _keys(self, windows: list[TrainingWindow]) -> NDArray[np.float16]:
        path = self.folder / "keys.npy"
        with first_process_first():
            if path.exists():
                loaded: NDArray[np.float16] = np.load(path)
                if len(loaded) == len(windows):
                    return loaded
            keys = self.retriever.document_keys([window.reading for window in windows]).vectors
            if rank() == 0:
                np.save(path, keys)
            return keys

    @property
    def _pad_id(self) -> int:
        return int(self.backbone.tokenizer.eos_token_id)
