"""A memory checkpoint for an instruct LLM without training anything; `cmt fit` runs it.

1. The LLM reads windows of plain text behind the head of its own chat template: their exact keys and values (reader.py).
2. It asks itself questions about them and answers on the exact keys and values (self_made.py), unless questions are given.
3. The gradient of the answers' log-loss says how much each number of a token matters (metric.py).
4. PCA in that metric is the code, and bits go by reverse water-filling over its components.
5. ψ's temperature, likelihood weight and relevance threshold are set on windows that were held out (calibration.py).
6. On the same windows the fit measures itself: nats of the answers with the exact document, the coded one, and none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.errors import DataError
from cmt_core.fitting.calibration import calibrate
from cmt_core.fitting.fit_config import FitConfig, Progress
from cmt_core.fitting.material import Passage, read_material
from cmt_core.fitting.metric import gradient_weights
from cmt_core.fitting.reader import ChatReader, Item
from cmt_core.fitting.self_made import ask_itself
from cmt_core.llm.backbone import Backbone
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.rounding import FittedRounding, fitted_rounding
from cmt_core.reading.aggregation import Select
from cmt_core.retrieval.retriever import Retriever
from cmt_core.shipped import RETRIEVER

__all__ = ["Fidelity", "FitResult", "fit"]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Nats a token that the LLM loses on its own answers, with the exact document, the coded one, and without any."""

    windows: int
    exact_nats: float
    coded_nats: float
    closed_nats: float

    @property
    def gap_kept(self) -> float:
        """The share of what a document tells that its memory tells: 1 is the exact document, 0 none."""
        gap = self.closed_nats - self.exact_nats
        return (self.closed_nats - self.coded_nats) / gap if gap > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class FitResult:
    """A checkpoint with what its fit measured."""

    checkpoint: Checkpoint
    fidelity: Fidelity
    seconds: float


def fit(
    backbone: Backbone,
    retriever: Retriever,
    config: FitConfig,
    *,
    texts: Path | None = None,
    questions: Path | None = None,
    described: dict[str, Any] | None = None,
    progress: Progress = lambda stage, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Fits a checkpoint to the LLM in `backbone`; `described` are names that are kept with it.

    Raises UnsupportedModelError, DataError for too little text, ConfigError for sizes that can't be.
    """
    started, cpu = time.monotonic(), time.process_time()
    reader = ChatReader(backbone)
    material = read_material(config, lambda text: len(reader.tokens.ids(text)), texts, questions)
    memory = config.memory(backbone.shape.width, len(reader.prompting.head), reader.instruction)
    held = _items(reader, material.held_out, config, progress, "reading held-out windows")
    items = _items(reader, material.fit, config, progress, "reading windows")
    ask_itself(reader, held, progress, "asking about held-out windows")
    asked = items[: config.questions]
    ask_itself(reader, asked, progress, "asking itself")
    weights = gradient_weights(reader, asked, progress, "gradients")
    code, rounding = _code(items, weights, backbone, memory, progress)

    def coded(item: Item) -> Tensor:
        codes = code.encode(item.exact.to(backbone.device))
        return code.decode(rounding.round(codes[None], torch.tensor([len(codes)]))[0], backbone.dtype)

    others = items[: max(0, 3 * len(held))]
    found = calibrate(
        reader,
        retriever,
        held,
        [passage.text for passage in (*material.held_out, *material.fit[: len(others)])],
        [coded(item) for item in (*held, *others)],
        progress,
        "calibrating",
        known_retriever=(described or {}).get("retriever") == RETRIEVER,
    )
    fidelity = _fidelity(reader, held, coded, progress)
    report(
        f"fidelity on {fidelity.windows} held-out windows: {fidelity.exact_nats:.3f} nats with the exact document, "
        f"{fidelity.coded_nats:.3f} with its memory, {fidelity.closed_nats:.3f} without; {fidelity.gap_kept:.0%} of the gap kept"
    )
    seconds = time.monotonic() - started
    memory = dataclasses.replace(
        memory,
        prior_temperature=found.prior_temperature,
        likelihood_weight=found.likelihood_weight,
        min_score=found.min_score,
    )
    training = {
        **(described or {}),
        "fit": dataclasses.asdict(config),
        "texts": material.source,
        "windows": len(items),
        "sample_tokens": sum(len(item.ids) for item in items),
        "calibration": dataclasses.asdict(found),
        "fidelity": dataclasses.asdict(fidelity) | {"gap_kept": fidelity.gap_kept},
        "asked": len(asked),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    checkpoint = Checkpoint(
        memory,
        backbone.shape,
        backbone.fingerprint(torch.bfloat16),
        reader.head.float().cpu(),
        reader.head.float().cpu(),
        code.cpu(),
        rounding.to(torch.device("cpu")),
        training,
        Select(backbone.shape, backbone.query_heads, memory.context_vectors).requires_grad_(False),
    )
    return FitResult(checkpoint, fidelity, seconds)


def _items(
    reader: ChatReader, passages: list[Passage], config: FitConfig, progress: Progress, stage: str
) -> list[Item]:
    """Windows read, with the questions and answers that are given."""
    items = reader.windows([passage.text for passage in passages], config.window_tokens, progress, stage)
    for item, passage in zip(items, passages, strict=True):
        item.question = passage.question
        item.target = reader.prompting.answer(passage.answer, closed=False) if passage.answer else None
    return items


def _code(
    items: list[Item], weights: Tensor, backbone: Backbone, memory: MemoryConfig, progress: Progress
) -> tuple[KVCode, FittedRounding]:
    tokens, width = sum(len(item.ids) for item in items), memory.code_width
    if tokens < 2 * width:
        raise DataError(f"the texts hold {tokens} tokens, and a code of {width} components needs at least {2 * width}")
    progress("code", 0, 1)
    torch.manual_seed(0)  # the PCA is a randomised one
    code = KVCode(backbone.shape, width).to(backbone.device).requires_grad_(False)
    sample = torch.cat([item.exact for item in items]).to(backbone.device, torch.float32)
    code.start_from_pca(sample, backbone.shape, weights.to(backbone.device))
    _as_stored(code)
    codes = [code.encode(item.exact.to(backbone.device, torch.float32)) for item in items]
    rounding = fitted_rounding(memory, codes).to(backbone.device)
    progress("code", 1, 1)
    return code, rounding


def _as_stored(code: KVCode) -> None:
    """Rounds the matrices as a checkpoint does, so that what is measured is what is loaded."""
    code.encoder.copy_(code.encoder.half().float())
    code.decoder.copy_(code.decoder.half().float())


def _fidelity(reader: ChatReader, held: list[Item], coded: Callable[[Item], Tensor], progress: Progress) -> Fidelity:
    stage, total = "measuring fidelity", 3
    kinds: list[Callable[[Item], Tensor | None]] = [lambda item: item.exact, coded, lambda item: None]
    figures = []
    for number, rows in enumerate(kinds, 1):
        figures.append(reader.all_nats(held, rows))
        progress(stage, number, total)
    return Fidelity(len(held), *figures)
