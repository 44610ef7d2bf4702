"""The models that the settings name: fetched, and fitted where need be, before any actor needs them; loaded inside it.

python -m services.models [FOLDER]     # fetch them into FOLDER, as the image's build does, or into model.cache_dir
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cmt_core.fitting.fit_config import DEFAULT_FIT, FitConfig
from cmt_core.fitting.known import known_checkpoint
from cmt_core.llm.model_source import resolve_model
from cmt_core.shipped import shipped_llm
from services.fit_bar import fit_progress
from services.settings import ModelSettings, Settings
from services.terminal import Terminal

if TYPE_CHECKING:
    from cmt_core.model import CMT

__all__ = ["fetch_models", "load_cmt"]

_log = logging.getLogger(__name__)


def fetch_models(model: ModelSettings, console: Terminal) -> None:
    """Fetches what is not cached yet, and fits a checkpoint where `auto` has none, in the foreground, where progress and errors
    can be seen. Raises CoreError."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    cache = model.cache_dir.expanduser()
    llm, retriever = (resolve_model(source, cache, say) for source in (model.llm, model.retriever))
    if model.checkpoint != "auto" or model.llm == shipped_llm() or known_checkpoint(cache, llm, retriever, _fit(model)):
        return
    from cmt_core.model import CMT

    with fit_progress(console) as progress:
        CMT.load(**_sources(model), report=say, progress=progress)


def load_cmt(settings: Settings) -> CMT:
    """The frozen LLM with its memory checkpoint, rounding as the settings say. Raises CoreError."""
    from cmt_core.evaluation.rounding import with_bits
    from cmt_core.model import CMT  # torch is loaded in the actor's process only

    model = CMT.load(**_sources(settings.model), report=_log.warning)
    bits = settings.model.bits_per_token
    if bits is None or bits == model.config.bits_per_token:
        return model
    return with_bits(model, bits, model.decoded.limit_bytes)


def _sources(model: ModelSettings) -> dict[str, Any]:
    named = model.model_dump(include={"llm", "checkpoint", "retriever", "cache_dir", "device"})
    return named | {"fit": _fit(model)}


def _fit(model: ModelSettings) -> FitConfig:
    """What `auto` fits: memories of as many bits as are asked for."""
    bits = model.bits_per_token
    return FitConfig(token_bytes=bits // 8) if bits else DEFAULT_FIT


if __name__ == "__main__":
    import sys

    from services.settings import load_settings

    settings = load_settings(model__cache_dir=sys.argv[1] if sys.argv[1:] else None)
    fetch_models(settings.model, Terminal(stderr=True))
