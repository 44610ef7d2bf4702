"""The memory bank that an evaluation asks: the library's own, filled with a stream's documents."""

from __future__ import annotations

from collections.abc import Iterable

from cmt_core.data.qa import QAExample
from cmt_core.memory_bank import Entry, MemoryBank
from cmt_core.model import CMT
from cmt_core.retrieval.ranking import DENSE, HYBRID, Ranking

__all__ = ["filled_bank", "own_window", "ranking_of"]


def filled_bank(
    model: CMT, documents: Iterable[tuple[str, str, str]], ranking: Ranking = HYBRID, *, compress: bool = False
) -> MemoryBank:
    """A bank of documents (doc_id, title, text), each compressed now or when it is first read."""
    bank = MemoryBank(model, ranking=ranking)
    bank.extend([Entry(text, title, doc_id) for doc_id, title, text in documents], compress=compress)
    return bank


def own_window(bank: MemoryBank, example: QAExample) -> int:
    """The row of the question's document that holds an answer (its first row when none does)."""
    own = [(number, row.window) for number, row in enumerate(bank.rows) if row.entry.doc_id == example.doc_id]
    holding = (number for number, window in own if any(a.lower() in window.text.lower() for a in example.answers))
    return next(holding, own[0][0])


def ranking_of(word_weight: float) -> Ranking:
    """The service's ranking with another share of BM25; 0 is by key alone."""
    return Ranking("hybrid", word_weight) if word_weight else DENSE
