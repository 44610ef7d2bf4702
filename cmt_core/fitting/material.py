"""What a fit reads: windows of plain text, and questions about some of them with the answers that a reader should give."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cmt_core.data.plain_text import read_texts
from cmt_core.data.qa import QAExample
from cmt_core.data.readers import read_examples
from cmt_core.errors import DataError
from cmt_core.fitting.fit_config import FitConfig
from cmt_core.text.windows import split_document

__all__ = ["Material", "Passage", "packaged_texts", "read_material"]

_LEAST_TOKENS = 24  # of a window that says something


@dataclass(frozen=True, slots=True)
class Passage:
    """One window's text, with a question about it and its answer where one is given."""

    text: str
    question: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Material:
    """Windows to fit on, those that have questions first, and windows held out."""

    fit: list[Passage]
    held_out: list[Passage]
    source: str


def packaged_texts() -> Path:
    """Articles that were written for this project: a fit needs no download."""
    return Path(str(resources.files("cmt_core.fitting") / "texts.jsonl"))


def read_material(
    config: FitConfig, count: Callable[[str], int], texts: Path | None = None, questions: Path | None = None
) -> Material:
    """Seeded windows of `texts` (the packaged ones when None), and of the documents of `questions` before them.

    `count` gives a string's number of tokens. Raises DataError when there are not enough windows to hold some out.
    """
    rng = random.Random(config.seed)
    asked = _asked(list(read_examples(questions)), config, count) if questions else []
    rng.shuffle(asked)
    plain = _windows(list(read_texts(texts or packaged_texts())), config, count, rng)
    whole = asked + plain
    if len(whole) < 8:
        raise DataError(f"{texts or questions} holds {len(whole)} windows of text, and a fit needs at least 8")
    kept = min(config.held_out, len(whole) // 4)
    sources = [str(path) for path in (questions, texts) if path] or ["the packaged texts"]
    return Material(whole[kept : kept + config.windows], whole[:kept], " and ".join(sources))


def _asked(examples: Sequence[QAExample], config: FitConfig, count: Callable[[str], int]) -> list[Passage]:
    """Questions with the window of their document that holds the answer."""
    passages = []
    for example in examples:
        windows = split_document(example.title, example.text, config.window_tokens - 1, count)
        held = next((one for one in windows if example.answers[0] in one.reading), windows[0] if windows else None)
        if held is not None:
            passages.append(Passage(held.reading, example.question, example.answers[0]))
    return passages


def _windows(texts: list[str], config: FitConfig, count: Callable[[str], int], rng: random.Random) -> list[Passage]:
    """Windows of documents in seeded order, as many as are wanted."""
    rng.shuffle(texts)
    made: list[Passage] = []
    for text in texts:
        if len(made) >= config.windows + config.held_out:
            break
        windows = split_document("", text, config.window_tokens - 1, count)
        made += [Passage(one.reading) for one in windows if count(one.reading) >= _LEAST_TOKENS]
    return made
