"""Training batches: windows with their questions, grouped so that a document's distractors are the retriever's own neighbours.

All questions of a window are packed into one row behind its context and can't see each other: the context is read once
for all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.data.qa import QuestionedDocument
from cmt_core.text.prompt import answer_text, question_text
from cmt_core.text.windows import split_document

__all__ = [
    "Batch",
    "QuestionRows",
    "TrainingWindow",
    "attend",
    "cluster_order",
    "collate",
    "some_questions",
    "training_windows",
]

BUCKET_TOKENS = 32  # shapes are rounded up to this: every new shape costs the CPU kernels seconds of re-tuning
IGNORED = -100


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """Token ids of a window's reading, and of its questions with their answers (question ids, answer ids)."""

    reading: str
    ids: tuple[int, ...]
    questions: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(slots=True)
class QuestionRows:
    """Packed questions: ids, segment (question number, -1 is padding), place inside the question, and targets, all (R, Q).

    For N of the questions whose answer was found in their window: `asked` (N, 2) is row and column of the prompt's last token,
    `spans` (N, T) where the answer stands.
    """

    ids: Tensor
    segment: Tensor
    place: Tensor
    targets: Tensor
    asked: Tensor
    spans: Tensor


@dataclass(slots=True)
class Batch:
    """R windows: ids and mask (R, T), their packed questions, and each row's context documents (R, k) as row numbers."""

    ids: Tensor
    mask: Tensor
    questions: QuestionRows
    context: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of documents and questions, without padding."""
        return int(self.mask.sum()) + int((self.questions.segment >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        moved = QuestionRows(*(getattr(self.questions, field.name).to(device) for field in fields(QuestionRows)))
        return Batch(self.ids.to(device), self.mask.to(device), moved, self.context.to(device))


def training_windows(
    documents: Sequence[QuestionedDocument],
    encode: Callable[[str], list[int]],
    eos_id: int,
    max_tokens: int,
) -> list[TrainingWindow]:
    """Splits documents; a question goes to the first window that holds one of its answers."""
    windows: list[TrainingWindow] = []
    for document in documents:
        parts = split_document(document.title, document.text, max_tokens, lambda text: len(encode(text)))
        texts = [part.reading.lower() for part in parts]
        questions: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = [[] for _ in parts]
        for question, answers in document.questions:
            found = _first_with(texts, answers)
            if found is not None:
                number, answer = found
                target = (*encode(answer_text(answer)), eos_id)
                questions[number].append((tuple(encode(question_text(question))), target))
        windows.extend(
            TrainingWindow(part.reading, tuple(encode(part.reading)[:max_tokens]), tuple(asked))
            for part, asked in zip(parts, questions, strict=True)
            if asked
        )
    return windows


def some_questions(window: TrainingWindow, most: int | None, rng: random.Random) -> TrainingWindow:
    """The window with at most so many of its questions (None: all), drawn anew each time."""
    if most is None or len(window.questions) <= most:
        return window
    return TrainingWindow(window.reading, window.ids, tuple(rng.sample(window.questions, most)))


def _first_with(texts: list[str], answers: Sequence[str]) -> tuple[int, str] | None:
    for answer in answers:
        for number, text in enumerate(texts):
            if answer.lower() in text:
                return number, answer
    return None


def cluster_order(keys: NDArray[np.float16], cluster: int, seed: int) -> list[list[int]]:
    """Splits all windows into groups of `cluster`: a random one and its nearest neighbours that are still free.

    keys (N, d) unit vectors. Groups come in random order; a last, smaller rest is left out.
    """
    vectors = keys.astype(np.float32)
    rng = random.Random(seed)
    order = list(range(len(vectors)))
    rng.shuffle(order)
    free = np.ones(len(vectors), dtype=bool)
    groups: list[list[int]] = []
    for seed_row in order:
        if not free[seed_row]:
            continue
        free[seed_row] = False
        if free.sum() < cluster - 1:
            break
        scores = np.where(free, vectors @ vectors[seed_row], -2.0)
        nearest = np.argpartition(-scores, cluster - 2)[: cluster - 1] if cluster > 1 else np.array([], dtype=np.int64)
        free[nearest] = False
        groups.append([seed_row, *(int(i) for i in nearest)])
    rng.shuffle(groups)
    return groups


def collate(
    groups: Sequence[Sequence[TrainingWindow]], k: int, pad_id: int, rng: random.Random, first: float | None = None
) -> Batch:
    """One batch of groups of neighbours; each row's context is itself and k - 1 others of its group.

    The row itself comes first in the share `first` of the contexts, as a retriever would rank it, and elsewhere at random.
    """
    windows = [window for group in groups for window in group]
    T = _bucket(max(len(window.ids) for window in windows))
    ids = torch.full((len(windows), T), pad_id)
    mask = torch.zeros(len(windows), T, dtype=torch.long)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
        mask[row, : len(window.ids)] = 1
    contexts: list[list[int]] = []
    start = 0
    for group in groups:
        members = range(start, start + len(group))
        for row in members:
            others = rng.sample([m for m in members if m != row], k - 1)
            context = [row, *others]
            if first is None or rng.random() >= first:
                rng.shuffle(context)
            contexts.append(context)
        start += len(group)
    return Batch(ids, mask, pack_questions(windows, pad_id, T), torch.tensor(contexts))


def pack_questions(windows: Sequence[TrainingWindow], pad_id: int, T: int | None = None) -> QuestionRows:
    """Each window's questions one behind the other in its row; targets are set at the answer's tokens only."""
    rows = [_packed(window) for window in windows]
    Q = _bucket(max(len(row) for row in rows))
    table = torch.tensor([[pad_id, -1, 0, IGNORED]]).repeat(len(rows), Q, 1)  # (R, Q, 4)
    for number, row in enumerate(rows):
        table[number, : len(row)] = torch.tensor(row)
    asked, spans = _evidence(windows, T or max(len(window.ids) for window in windows))
    ids, segment, place, targets = table.unbind(dim=-1)
    return QuestionRows(ids, segment, place, targets, asked, spans)


def _packed(window: TrainingWindow) -> list[tuple[int, int, int, int]]:
    packed: list[tuple[int, int, int, int]] = []
    for segment, (question, answer) in enumerate(window.questions):
        sequence = [*question, *answer]
        for place in range(len(sequence) - 1):
            target = sequence[place + 1] if place + 1 >= len(question) else IGNORED
            packed.append((sequence[place], segment, place, target))
    return packed


def _evidence(windows: Sequence[TrainingWindow], T: int) -> tuple[Tensor, Tensor]:
    """`asked` and `spans` of QuestionRows."""
    asked: list[tuple[int, int]] = []
    spans: list[Tensor] = []
    for row, window in enumerate(windows):
        start = 0
        for question, answer in window.questions:
            span = _span(window.ids, answer[:-1], T)
            if span.any():
                asked.append((row, start + len(question) - 1))
                spans.append(span)
            start += len(question) + len(answer) - 1
    return torch.tensor(asked, dtype=torch.long).view(-1, 2), torch.stack(spans) if spans else torch.zeros(0, T).bool()


def _span(ids: Sequence[int], answer: Sequence[int], T: int) -> Tensor:
    """Where in a window (T,) the answer's tokens stand, every time they do."""
    span = torch.zeros(T, dtype=torch.bool)
    size = len(answer)
    for start in range(len(ids) - size + 1):
        if size and tuple(ids[start : start + size]) == tuple(answer):
            span[start : start + size] = True
    return span


def attend(seen: Tensor, segment: Tensor) -> Tensor:
    """(R, 1, Q, S + Q): a question token sees the whole context (R, S) and the earlier tokens of its own question."""
    Q = segment.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    causal = torch.ones(Q, Q, dtype=torch.bool, device=segment.device).tril()
    return torch.cat([seen[:, None, :].expand(-1, Q, -1), same & causal], dim=-1)[:, None]


def _bucket(length: int) -> int:
    return -(-length // BUCKET_TOKENS) * BUCKET_TOKENS
