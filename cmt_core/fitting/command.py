"""What `cmt fit` does: load the LLM and the retriever, fit, write the checkpoint folder with its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cmt_core.checkpoint import Checkpoint
from cmt_core.fitting.card import card
from cmt_core.fitting.fit import FitResult, fit
from cmt_core.fitting.fit_config import DEFAULT_FIT, FitConfig, Progress
from cmt_core.llm.backbone import Backbone, pick_device
from cmt_core.llm.model_source import resolve_model
from cmt_core.retrieval.retriever import Retriever
from cmt_core.shipped import CACHE_DIR, RETRIEVER

__all__ = ["fit_checkpoint", "save_fitted"]


def fit_checkpoint(
    output: Path,
    *,
    llm: str,
    retriever: str = RETRIEVER,
    cache_dir: Path = CACHE_DIR,
    device: str = "auto",
    config: FitConfig = DEFAULT_FIT,
    texts: Path | None = None,
    questions: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Fits a checkpoint to the LLM and writes it to `output`.

    `texts` are plain text to read (packaged articles when None), `questions` a question-answer set whose gold answers take the
    place of the LLM's own. Raises ModelSourceError, UnsupportedModelError, ConfigError or DataError.
    """
    cache, target = cache_dir.expanduser(), pick_device(device)
    llm_folder, retriever_folder = resolve_model(llm, cache, report), resolve_model(retriever, cache, report)
    backbone = Backbone.load(llm_folder, target)
    fitted = fit(
        backbone,
        Retriever(retriever_folder, target),
        config,
        texts=texts,
        questions=questions,
        described={"llm": llm, "retriever": retriever},
        progress=progress,
        report=report,
    )
    save_fitted(fitted.checkpoint, output)
    report(f"checkpoint written to {output} in {fitted.seconds:.0f} s")
    return fitted


def save_fitted(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the checkpoint with its card."""
    checkpoint.save(folder)
    (folder / "MODEL_CARD.md").write_text(card(checkpoint, folder.name), encoding="utf-8")
