"""The models that the settings name: fetched before any actor needs them, loaded inside it.

python -m services.models [FOLDER]     # fetch them into FOLDER, as the image's build does, or into model.cache_dir
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmt_core.model_source import resolve_model
from services.settings import ModelSettings, Settings
from services.terminal import Terminal

if TYPE_CHECKING:
    from cmt_core.model import CMT

__all__ = ["fetch_models", "load_cmt"]


def fetch_models(model: ModelSettings, console: Terminal) -> None:
    """Fetches what is not cached yet, in the foreground, where progress and errors can be seen. Raises ModelSourceError."""

    def say(line: str) -> None:
        console.print(line)

    for source in (model.llm, model.retriever):
        resolve_model(source, model.cache_dir.expanduser(), say)


def load_cmt(settings: Settings) -> CMT:
    """The frozen LLM with its memory checkpoint, rounding as the settings say. Raises CoreError."""
    from cmt_core.model import CMT  # torch is loaded in the actor's process only
    from cmt_core.rounding import with_bits

    model = CMT.load(**settings.model.model_dump(include={"llm", "checkpoint", "retriever", "cache_dir", "device"}))
    bits = settings.model.bits_per_token
    if bits is None or bits == model.config.bits_per_token:
        return model
    return with_bits(model, bits, model.decoded.limit_bytes)


if __name__ == "__main__":
    import sys

    from services.settings import load_settings

    settings = load_settings(model__cache_dir=sys.argv[1] if sys.argv[1:] else None)
    fetch_models(settings.model, Terminal(stderr=True))
