"""The library's bank and the service's LanceDB bank put the same documents first, since they share one ranking."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cmt_core.retrieval.hybrid import HybridIndex
from cmt_core.retrieval.ranking import DENSE, HYBRID
from services.bank.reader import BankReader
from services.bank.records import Chunk, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.sample_news import sample_questions
from services.testing.lexical import LexicalModel

MODEL = LexicalModel(d_key=128)
LAYOUT = BankLayout(model_id=MODEL.model_id, d_key=MODEL.d_key, memory_bytes=MODEL.memory_bytes)


def test_the_same_articles_come_first_for_every_sample_question(tmp_path: Path) -> None:
    asked = sample_questions()
    texts = {row.doc_id: (row.title, row.text) for row in asked}
    windows = [(doc_id, window) for doc_id, (title, text) in texts.items() for window in MODEL.windows(title, text)]
    keys = MODEL.document_keys([window for _, window in windows]).astype(np.float16)
    with BankWriter(str(tmp_path / "bank"), LAYOUT) as writer:
        writer.commit(
            [
                DocumentWrite(
                    namespace="default",
                    doc_id=doc_id,
                    title=title,
                    url=None,
                    source=None,
                    published_at=None,
                    expires_at=None,
                    position=Position(1, 0, number, datetime(2026, 11, 2, tzinfo=UTC)),
                    chunks=tuple(
                        Chunk(window.text, key, MODEL.pack(window.text), 1)
                        for (owner, window), key in zip(windows, keys, strict=True)
                        if owner == doc_id
                    ),
                )
                for number, (doc_id, (title, _)) in enumerate(texts.items())
            ]
        )
    questions = [row.question for row in asked]
    query_keys = MODEL.query_keys(questions)
    names = [(doc_id, window.number) for doc_id, window in windows]
    readings = [window.reading for _, window in windows]
    for ranking in (DENSE, HYBRID):
        index = HybridIndex(readings, keys, ranking, names)
        here = [[windows[one.row][0] for one in found] for found in index.nearest(questions, query_keys, 4)]
        reader = BankReader(str(tmp_path / "bank"), LAYOUT, ranking=ranking)
        there = [[hit.doc_id for hit in hits] for hits in reader.search(query_keys, 4, "default", texts=questions)]
        assert [mine[0] for mine in here] == [theirs[0] for theirs in there]
