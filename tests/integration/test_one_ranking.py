"""The library's bank and the service's LanceDB bank put the same documents first, since they share one ranking."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cmt_core.retrieval.hybrid import HybridIndex
from cmt_core.retrieval.late_interaction import pack_tokens
from cmt_core.retrieval.ranking import DENSE, HYBRID
from cmt_core.text.words import words
from services.bank.reader import BankReader
from services.bank.records import Chunk, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.sample_news import sample_questions
from services.testing.lexical import LexicalModel

MODEL = LexicalModel(d_key=128)
LAYOUT = BankLayout(model_id=MODEL.model_id, d_key=MODEL.d_key, memory_bytes=MODEL.memory_bytes)


def word_vectors(text: str) -> np.ndarray:
    """A vector (64,) of every word, drawn by its letters."""
    seeds = [zlib.crc32(word.lower().encode()) for word in words(text)]
    return np.array([np.random.default_rng(seed).standard_normal(64) for seed in seeds], dtype=np.float32)


def test_the_same_articles_come_first_for_every_sample_question(tmp_path: Path) -> None:
    asked = sample_questions()
    texts = {row.doc_id: (row.title, row.text) for row in asked}
    windows = [(doc_id, window) for doc_id, (title, text) in texts.items() for window in MODEL.windows(title, text)]
    keys = MODEL.document_keys([window for _, window in windows]).vectors.astype(np.float16)
    tokens = [pack_tokens(word_vectors(window.reading), [0]) for _, window in windows]
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
                        Chunk(window.text, key, MODEL.pack(window.text), 1, packed)
                        for (owner, window), key, packed in zip(windows, keys, tokens, strict=True)
                        if owner == doc_id
                    ),
                )
                for number, (doc_id, (title, _)) in enumerate(texts.items())
            ]
        )
    questions = [row.question for row in asked]
    query_keys = MODEL.query_keys(questions).vectors
    names = [(doc_id, window.number) for doc_id, window in windows]
    readings = [window.reading for _, window in windows]
    wanted = [word_vectors(question) for question in questions]
    orders = []
    for ranking, asked in ((DENSE, wanted), (HYBRID, []), (HYBRID, wanted)):
        index = HybridIndex(readings, keys, ranking, names, tokens)
        found = index.nearest(questions, query_keys, 4, tokens=asked)
        here = [[windows[one.row][0] for one in hits] for hits in found]
        reader = BankReader(str(tmp_path / "bank"), LAYOUT, ranking=ranking)
        there = reader.search(query_keys, 4, "default", texts=questions, tokens=asked)
        assert [mine[0] for mine in here] == [hits[0].doc_id for hits in there]
        orders.append(here)
    assert orders[1] != orders[2]  # the tokens count
