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
from services.settings import LONGEST_ANSWER_TOKENS, ModelSettings, Settings
from services.terminal import Terminal

if TYPE_CHECKING:
    from cmt_core.model import CMT
    from cmt_core.vllm_engine.model import VLLMModel

__all__ = ["fetch_models", "load_answering", "load_cmt", "load_vllm"]

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


def load_answering(settings: Settings) -> CMT | VLLMModel:
    """The model of the engine that the settings name. Raises CoreError."""
    return load_vllm(settings) if settings.serve.engine == "vllm" else load_cmt(settings)


def load_vllm(settings: Settings) -> VLLMModel:
    """The same checkpoint for vLLM, whose engine is not started yet. Raises CoreError."""
    from cmt_core.vllm_engine.model import VLLMModel
    from cmt_core.vllm_engine.packed_model import PackedModel

    model, serve = settings.model, settings.serve
    sources = _sources(model)
    del sources["device"]  # vLLM finds its own
    packed = PackedModel.load(**sources, report=_log.warning)
    if model.bits_per_token is not None:
        packed = packed.with_bits(model.bits_per_token)
    most = packed.most_columns(serve.top_k or packed.default_top_k) + serve.max_prompt_tokens + LONGEST_ANSWER_TOKENS
    arguments = {"max_model_len": min(most, packed.llm.longest), **serve.vllm}
    return VLLMModel(packed, arguments)


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
