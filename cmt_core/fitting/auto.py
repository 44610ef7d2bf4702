"""`model.checkpoint: auto`: the shipped checkpoint for its own LLM, else one that is fitted once and kept in the cache.

The cache's folder carries the fingerprint of the LLM's weights, its chat template, the retriever and the fit's sizes, so a
checkpoint of other weights is never found. Of several processes that need the same fit one makes it, and the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cmt_core.fitting.command import save_fitted
from cmt_core.fitting.fit import fit
from cmt_core.fitting.fit_config import DEFAULT_FIT, FitConfig, Progress
from cmt_core.fitting.known import fit_revision
from cmt_core.llm.backbone import Backbone
from cmt_core.retrieval.retriever import Retriever
from cmt_core.shipped import SHIPPED, checkpoint_llm

__all__ = ["auto_checkpoint"]


def auto_checkpoint(
    backbone: Backbone,
    fingerprint: str,
    retriever: Retriever,
    retriever_fingerprint: str,
    cache: Path,
    *,
    llm: str,
    retriever_name: str,
    config: FitConfig = DEFAULT_FIT,
    progress: Progress = lambda stage, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of the checkpoint for the LLM in `backbone`; fits it when there is none yet.

    Raises UnsupportedModelError for an LLM without a usable chat template.
    """
    if checkpoint_llm(SHIPPED)["fingerprint"] == fingerprint:
        return SHIPPED
    folder = cache / "fitted" / _name(backbone, fingerprint, retriever_fingerprint, config, llm)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # another process was faster
            return folder
        report(f"fitting a memory checkpoint to {llm}, once: it is kept in {folder}")
        described = {"llm": llm, "retriever": retriever_name}
        fitted = fit(backbone, retriever, config, described=described, progress=progress, report=report)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            save_fitted(fitted.checkpoint, scratch / folder.name)
            (scratch / folder.name).rename(folder)
        finally:
            shutil.rmtree(scratch)
        report(
            f"fitted in {fitted.seconds:.0f} s: a memory keeps {fitted.fidelity.gap_kept:.0%} of what a document tells"
        )
    return folder


def _name(backbone: Backbone, fingerprint: str, retriever_fingerprint: str, config: FitConfig, llm: str) -> str:
    template = getattr(backbone.tokenizer, "chat_template", None)
    parts = [fit_revision(config), fingerprint, template, retriever_fingerprint]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    readable = re.sub(r"[^a-z0-9.]+", "-", Path(llm.removeprefix("pypi:")).name.lower()).strip("-.")
    return f"{readable}-{digest}"
