"""What fine-tuning on the stream costs, beside a memory: the paper's forgetting experiment.

The same LLM is trained on the stream's documents until it has seen them `epochs` times, at each of several learning rates.
Before and after: its answers to the stream's questions without any document, behind the reading prefix, so that it knows what an
answer looks like; and its log-loss on plain text that has nothing to do with the stream. A memory leaves the LLM as it is, so
its log-loss can't change; its answers are those of the stream protocol.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmt_core.data.qa import QAExample
from cmt_core.evaluation.bank import filled_bank
from cmt_core.evaluation.metrics import exact_match, f1
from cmt_core.evaluation.systems import system
from cmt_core.memory_bank import MemoryBank
from cmt_core.model import CMT

__all__ = ["ForgettingScores", "forgetting"]

_BATCH = 8
_CLOSED = "closed_prefix"


@dataclass(frozen=True, slots=True)
class ForgettingScores:
    """Answers on the stream, and log-loss in nats per token on text outside it, after `epochs` of fine-tuning (0: none)."""

    system: str
    epochs: int
    em: float
    f1: float
    other_text_nats: float
    llm_unchanged: bool


def forgetting(
    model: CMT,
    examples: Sequence[QAExample],
    other_texts: Sequence[str],
    *,
    documents: int,
    questions: int,
    epochs: int,
    rates: Sequence[float],
    k: int,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> list[ForgettingScores]:
    """Closed book, memory, and closed book after every epoch of fine-tuning on the stream's `documents` at each of `rates`."""
    texts = {row.doc_id: (row.doc_id, row.title, row.text) for row in examples}
    chosen = random.Random(seed).sample([texts[doc_id] for doc_id in sorted(texts)], min(documents, len(texts)))
    kept = {doc_id for doc_id, _, _ in chosen}
    pool = [row for row in examples if row.doc_id in kept]
    asked = random.Random(seed).sample(pool, min(questions, len(pool)))
    bank = filled_bank(model, chosen)
    before = model.backbone.fingerprint()
    other = _rows(model, other_texts)

    def scores(label: str, name: str, answering: CMT, epoch: int) -> ForgettingScores:
        em, f = _answers(name, answering, bank, asked, k)
        nats = _nats(answering.backbone.model, other)
        unchanged = answering.backbone.fingerprint() == before
        report(f"{label} after {epoch} epochs: EM {em:.1f} F1 {f:.1f}, other text {nats:.3f} nats a token")
        return ForgettingScores(label, epoch, em, f, round(nats, 4), unchanged)

    memory = "select" if model.select else "stack"
    rows = [scores(_CLOSED, _CLOSED, model, 0), scores(memory, memory, model, 0)]
    stream = _rows(model, [row.window.reading for row in bank.rows])
    for rate in rates:
        tuned = copy.copy(model)
        tuned.backbone = copy.copy(model.backbone)
        tuned.backbone.model = copy.deepcopy(model.backbone.model)
        for epoch in range(epochs):
            _fine_tune(tuned.backbone.model, stream, rate, seed + epoch)
            rows.append(scores(f"fine-tuned at {rate:g}", _CLOSED, tuned, epoch + 1))
    return rows


def _answers(name: str, model: CMT, bank: MemoryBank, asked: Sequence[QAExample], k: int) -> tuple[float, float]:
    compared = system(name, model)
    found = bank.nearest([row.question for row in asked], k)
    bank = bank.read_by(compared.model)
    answers = compared.answers(bank, asked, found, 24)
    pairs = [(one.answer.text, row.answers) for one, row in zip(answers, asked, strict=True)]
    share = 100 / len(pairs)
    return round(share * sum(exact_match(*pair) for pair in pairs), 2), round(
        share * sum(f1(*pair) for pair in pairs), 2
    )


def _rows(model: CMT, texts: Sequence[str]) -> list[list[int]]:
    limit = model.config.window_tokens
    return [ids for text in texts if len(ids := model.tokens.ids(text)[:limit]) > 1]


def _fine_tune(llm: Any, rows: Sequence[list[int]], rate: float, seed: int) -> None:
    """One epoch of next-token training on the rows."""
    llm.requires_grad_(True)
    optimiser = torch.optim.AdamW(llm.parameters(), lr=rate)
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    for start in range(0, len(order), _BATCH):
        loss = _loss(llm, [rows[i] for i in order[start : start + _BATCH]])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimiser.step()
    llm.requires_grad_(False)


@torch.no_grad()
def _nats(llm: Any, rows: Sequence[list[int]]) -> float:
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    tokens = [sum(len(row) - 1 for row in batch) for batch in batches]
    return sum(float(_loss(llm, batch)) * n for batch, n in zip(batches, tokens, strict=True)) / max(1, sum(tokens))


def _loss(llm: Any, rows: Sequence[list[int]]) -> Tensor:
    """Mean log-loss in nats per next token of rows of token ids."""
    T = max(map(len, rows))
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full((len(rows), T), -100)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        targets[number, : len(row) - 1] = torch.tensor(row[1:])
    logits = llm(input_ids=ids.to(llm.device)).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.to(llm.device).flatten())
