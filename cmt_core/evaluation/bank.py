"""The evaluation's bank: all windows of a stream with their memories in memory, and exact hybrid search.

It is no LanceDB bank, so that a score depends on the method alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cmt_core.data.qa import QAExample
from cmt_core.hybrid import LEXICAL_WEIGHT, HybridIndex
from cmt_core.model import CMT, Memory
from cmt_core.windows import Window

__all__ = ["EvaluationBank"]


@dataclass(slots=True)
class EvaluationBank:
    """All windows of the stream in order, their memories, the document each belongs to, and the index that finds them."""

    doc_ids: list[str]
    windows: list[Window]
    memories: list[Memory]
    index: HybridIndex

    @classmethod
    def fill(
        cls, model: CMT, documents: Sequence[tuple[str, str, str]], lexical_weight: float = LEXICAL_WEIGHT
    ) -> EvaluationBank:
        """Compresses documents (doc_id, title, text) through the real compressor."""
        doc_ids: list[str] = []
        windows: list[Window] = []
        for doc_id, title, text in documents:
            parts = model.windows(title, text)
            windows.extend(parts)
            doc_ids.extend([doc_id] * len(parts))
        index = HybridIndex([window.reading for window in windows], model.document_keys(windows), lexical_weight)
        return cls(doc_ids, windows, model.compress(windows), index)

    @property
    def documents(self) -> int:
        """How many documents it holds."""
        return len(set(self.doc_ids))

    def nearest(self, model: CMT, questions: Sequence[str], k: int) -> list[list[int]]:
        """The k best windows of every question, best first."""
        return self.index.nearest(questions, model.query_keys(questions), k)

    def own_window(self, example: QAExample) -> int:
        """The window of the question's document that holds an answer (its first window when none does)."""
        own = [row for row, doc_id in enumerate(self.doc_ids) if doc_id == example.doc_id]
        holding = (r for r in own if any(a.lower() in self.windows[r].text.lower() for a in example.answers))
        return next(holding, own[0])
