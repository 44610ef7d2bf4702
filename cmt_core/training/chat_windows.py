"""Training windows of a checkpoint that is read in the LLM's chat template: with given questions, or with the LLM's own.

No label is needed: the LLM asks and answers on the exact keys and values (fitting/self_made.py), and what it has made is kept in
the run's folder, so that a stopped run goes on asking where it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cmt_core.data.qa import QuestionedDocument
from cmt_core.errors import DataError
from cmt_core.fitting.reader import ChatReader, Item
from cmt_core.fitting.self_made import GENERAL_QUESTION, ask_itself
from cmt_core.text.prompt import SHORT_ANSWERS
from cmt_core.text.windows import split_document
from cmt_core.training.batches import TrainingWindow

__all__ = ["asked_windows", "self_asked_windows"]

_AT_ONCE = 32  # windows that are read and asked about before they are kept
_LEAST_TOKENS = 24  # of a window that says something
Told = Callable[[int, int], None]  # how many windows are asked about, of how many


def asked_windows(
    documents: Sequence[QuestionedDocument], reader: ChatReader, window_tokens: int
) -> list[TrainingWindow]:
    """Windows with the given questions whose answers they hold, asked for in a few words."""
    prompting = reader.prompting
    made: list[TrainingWindow] = []
    for document in documents:
        parts = split_document(
            document.title, document.text, window_tokens - 1, lambda text: len(reader.tokens.ids(text))
        )
        own: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = [[] for _ in parts]
        for question, answers in document.questions:
            for part, asked in zip(parts, own, strict=True):
                answer = next((one for one in answers if one.lower() in part.reading.lower()), None)
                if answer is not None:
                    target = prompting.answer(answer, closed=False)
                    asked.append((tuple(prompting.question(question, (), SHORT_ANSWERS)), tuple(target)))
                    break
        made += [
            TrainingWindow(part.reading, tuple(prompting.document(part.reading, window_tokens)), tuple(asked))
            for part, asked in zip(parts, own, strict=True)
            if asked
        ]
    return made


def self_asked_windows(
    texts: Iterable[str], reader: ChatReader, window_tokens: int, wanted: int, seed: int, path: Path, told: Told
) -> list[TrainingWindow]:
    """At most `wanted` windows of `texts` in seeded order, each with what the LLM asks and tells about it.

    What is made is added to the JSONL file `path`; what is there is not made again. Raises DataError for too little text.
    """
    readings = _readings(texts, reader, window_tokens, seed)[:wanted]
    if len(readings) < 2:
        raise DataError(f"the texts hold {len(readings)} windows: training needs at least 2")
    kept = _kept(path)[: len(readings)]
    told(len(kept), len(readings))
    while len(kept) < len(readings):
        made = _asked(readings[len(kept) : len(kept) + _AT_ONCE], reader, window_tokens)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(pairs) + "\n" for pairs in made)
        kept += made
        told(len(kept), len(readings))
    return [
        TrainingWindow(
            reading,
            tuple(reader.prompting.document(reading, window_tokens)),
            tuple((tuple(question), tuple(answer)) for question, answer in pairs),
        )
        for reading, pairs in zip(readings, kept, strict=True)
    ]


def _readings(texts: Iterable[str], reader: ChatReader, window_tokens: int, seed: int) -> list[str]:
    def count(text: str) -> int:
        return len(reader.tokens.ids(text))

    def windows() -> Iterator[str]:
        for text in texts:
            for part in split_document("", text, window_tokens - 1, count):
                if count(part.reading) >= _LEAST_TOKENS:
                    yield part.reading

    found = list(windows())
    random.Random(seed).shuffle(found)
    return found


def _asked(readings: Sequence[str], reader: ChatReader, window_tokens: int) -> list[list[list[list[int]]]]:
    """Of each window two questions with their answers, in tokens: one that the LLM asks itself, and what the passage says."""
    items = reader.windows(readings, window_tokens, lambda *done: None, "")
    ask_itself(reader, items, lambda *done: None, "")
    general = [Item(item.ids, item.exact, GENERAL_QUESTION) for item in items]
    ask_itself(reader, general, lambda *done: None, "")
    return [
        [[list(one.prompt or []), list(one.target or [])] for one in pair if one.target]
        for pair in zip(items, general, strict=True)
    ]


def _kept(path: Path) -> list[list[list[list[int]]]]:
    """What was made before; a last line that a crash has cut off counts as not made."""
    if not path.exists():
        return []
    whole: list[list[list[list[int]]]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        try:
            whole.append(json.loads(line))
        except ValueError:
            break
    if len(whole) < len(lines):
        path.write_text("".join(json.dumps(pairs) + "\n" for pairs in whole), encoding="utf-8")
    return whole
