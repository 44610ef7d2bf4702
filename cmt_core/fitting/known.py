"""Which fitted checkpoint goes with the files of an LLM's folder: notes, so that a second start need not load the LLM to know.

A note is only a shortcut past a question; what is loaded is compared by its fingerprint all the same. Importable without torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from cmt_core.fitting.fit_config import FitConfig

__all__ = ["fit_revision", "known_checkpoint", "note_checkpoint"]

_VERSION = 4  # of what a fit computes: another one fits anew
_TEXTS = Path(__file__).parent / "texts.jsonl"


def fit_revision(config: FitConfig) -> str:
    """What decides about an automatic fit besides the models: its program, its sizes, and the packaged texts."""
    texts = hashlib.sha256(_TEXTS.read_bytes()).hexdigest()
    return json.dumps([_VERSION, dataclasses.asdict(config), texts], sort_keys=True)


def known_checkpoint(cache: Path, llm: Path, retriever: Path, config: FitConfig) -> Path | None:
    """The fitted checkpoint's folder, when one was noted for these files and is still there."""
    try:
        folder = Path(_note(cache, llm, retriever, config).read_text(encoding="utf-8"))
    except OSError:
        return None
    return folder if (folder / "config.json").is_file() else None


def note_checkpoint(cache: Path, llm: Path, retriever: Path, config: FitConfig, folder: Path) -> None:
    """Notes the checkpoint that `auto` came to."""
    note = _note(cache, llm, retriever, config)
    with contextlib.suppress(OSError):  # a cache that an image brought is not written to
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(str(folder), encoding="utf-8")


def _note(cache: Path, llm: Path, retriever: Path, config: FitConfig) -> Path:
    files = [
        (str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in _weights(llm) + _weights(retriever)
    ]
    name = hashlib.sha256(json.dumps([fit_revision(config), files]).encode()).hexdigest()[:24]
    return cache / "fitted" / "notes" / name


def _weights(folder: Path) -> list[Path]:
    """The files whose change makes another model."""
    kinds = ("*.safetensors", "*.bin", "tokenizer*.json", "chat_template*", "config.json")
    return sorted(path for kind in kinds for path in folder.resolve().glob(kind))
