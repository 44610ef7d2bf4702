"""The evaluation's bank: all windows of a stream with their memories in memory, and exact hybrid search.

It is no LanceDB bank, so that a score depends on the method alone.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from cmt_core.data.qa import QAExample
from cmt_core.errors import ConfigError
from cmt_core.hybrid import LEXICAL_WEIGHT, Found, HybridIndex
from cmt_core.model import CMT, Memory
from cmt_core.windows import Window

__all__ = ["EvaluationBank"]


@dataclass(slots=True)
class EvaluationBank:
    """All windows of the stream in order, their memories, the document each belongs to, and the index that finds them.

    A memory that is None is compressed when it is first read: it is the same memory then, and a bank of 50,000 windows need not
    be compressed for the few hundred that its questions find.
    """

    model: CMT
    doc_ids: list[str]
    windows: list[Window]
    memories: list[Memory | None]
    index: HybridIndex

    @classmethod
    def fill(
        cls,
        model: CMT,
        documents: Sequence[tuple[str, str, str]],
        lexical_weight: float = LEXICAL_WEIGHT,
        *,
        compress: bool = True,
    ) -> EvaluationBank:
        """A bank of documents (doc_id, title, text), each compressed now or (`compress` false) when it is first read."""
        doc_ids: list[str] = []
        windows: list[Window] = []
        for doc_id, title, text in documents:
            parts = model.windows(title, text)
            windows.extend(parts)
            doc_ids.extend([doc_id] * len(parts))
        index = HybridIndex([window.reading for window in windows], model.document_keys(windows), lexical_weight)
        made: list[Memory | None] = [*model.compress(windows)] if compress else [None] * len(windows)
        return cls(model, doc_ids, windows, made, index)

    def read_by(self, model: CMT) -> EvaluationBank:
        """The same windows, found alike, with the memories that `model` reads: these, or its own where it is another
        checkpoint, compressed when they are first read.

        Raises ConfigError when the other checkpoint splits documents elsewhere.
        """
        if model.model_id == self.model.model_id:
            return replace(self, model=model)
        if model.config.window_tokens != self.model.config.window_tokens:
            raise ConfigError("checkpoints with windows of different sizes can't share one bank")
        return replace(self, model=model, memories=[None] * len(self.windows))

    def part(self, doc_ids: Container[str]) -> EvaluationBank:
        """The bank as it would be with these documents only."""
        rows = [row for row, doc_id in enumerate(self.doc_ids) if doc_id in doc_ids]
        return EvaluationBank(
            self.model,
            [self.doc_ids[row] for row in rows],
            [self.windows[row] for row in rows],
            [self.memories[row] for row in rows],
            self.index.part(rows),
        )

    @property
    def documents(self) -> int:
        """How many documents it holds."""
        return len(set(self.doc_ids))

    @property
    def made(self) -> list[Memory]:
        """The memories that were compressed so far."""
        return [memory for memory in self.memories if memory is not None]

    def codes(self, rows: Sequence[Sequence[int]]) -> list[list[bytes]]:
        """Packed memories of several lists of rows."""
        missing = sorted({r for row in rows for r in row if self.memories[r] is None})
        for r, memory in zip(missing, self.model.compress([self.windows[r] for r in missing]), strict=True):
            self.memories[r] = memory
        return [[one.code for r in row if (one := self.memories[r]) is not None] for row in rows]

    def nearest(self, questions: Sequence[str], k: int) -> list[list[Found]]:
        """The k best windows of every question, best first."""
        return self.index.nearest(questions, self.model.query_keys(questions), k)

    def own_window(self, example: QAExample) -> int:
        """The window of the question's document that holds an answer (its first window when none does)."""
        own = [row for row, doc_id in enumerate(self.doc_ids) if doc_id == example.doc_id]
        holding = (r for r in own if any(a.lower() in self.windows[r].text.lower() for a in example.answers))
        return next(holding, own[0])
