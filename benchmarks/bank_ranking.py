"""Recall of squad_dev's questions through a real bank, by cosine, by cosine and words (with their proximity), by rank fusion."""

from __future__ import annotations

import os
import random
import tempfile
import time
from datetime import UTC, datetime

import numpy as np
import torch

from benchmarks.bars import Figure, Report
from cmt_core.data.qa import read_qa
from cmt_core.llm.backbone import pick_device
from cmt_core.llm.model_source import resolve_model
from cmt_core.retrieval.late_interaction import QueryKeys
from cmt_core.retrieval.ranking import Ranking
from cmt_core.retrieval.retriever import Retriever
from services.bank.reader import BankReader
from services.bank.records import Chunk, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.settings import load_settings

__all__ = ["measure_ranking"]

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_RANKINGS = [
    *(Ranking("dense"), Ranking("rrf")),
    *(Ranking("hybrid", weight, proximity_weight=0.0, token_weight=0.0) for weight in (0.2, 0.4, 0.6)),
    Ranking("hybrid", token_weight=0.0),
    Ranking("hybrid"),
]


def measure_ranking(report: Report) -> None:
    """All 2,067 paragraphs in one bank, half of them indexed or all; BENCH_QUESTIONS questions (2,000)."""
    settings = load_settings()
    torch.set_num_threads(2)
    folder = resolve_model(settings.model.retriever, settings.model.cache_dir.expanduser(), print)
    retriever = Retriever(folder, pick_device("cpu"))
    examples = list(read_qa(settings.data_dir / "squad_dev.jsonl.gz"))
    texts = {example.doc_id: (example.title, example.text) for example in examples}
    random.Random(0).shuffle(examples)
    asked = examples[: int(os.environ.get("BENCH_QUESTIONS", "2000"))]
    keys = retriever.document_keys([f"{title}\n{text}" for title, text in texts.values()])
    questions = retriever.query_keys([example.question for example in asked])
    layout = BankLayout("bench", retriever.d_key, 16)
    with tempfile.TemporaryDirectory() as name:
        uri = f"{name}/bank"
        with BankWriter(uri, layout, maintain_every=0) as writer:
            documents = [
                DocumentWrite("default", doc_id, title, None, None, None, None, Position(0, 0, n, _EPOCH), (chunk,))
                for n, (doc_id, (title, text)) in enumerate(texts.items())
                for chunk in (Chunk(text, keys.vectors[n], bytes(16), 1, keys.tokens[n]),)
            ]
            writer.commit(documents[::2])
            writer.optimize()
            writer.commit(documents[1::2])
            _measure(report, uri, layout, "half indexed", asked, questions, [Ranking("hybrid")])
            writer.optimize()
        _measure(report, uri, layout, "all indexed", asked, questions, _RANKINGS)


def _measure(
    report: Report,
    uri: str,
    layout: BankLayout,
    state: str,
    asked: list,
    questions: QueryKeys,
    rankings: list[Ranking],
) -> None:
    for ranking in rankings:
        reader = BankReader(uri, layout, 60.0, ranking=ranking)
        found, taken = [], []
        for example, key, tokens in zip(asked, questions.vectors, questions.tokens, strict=True):
            started = time.perf_counter()
            hits = reader.search(key[None], 4, texts=[example.question], tokens=[tokens])[0]
            taken.append(time.perf_counter() - started)
            found.append([hit.doc_id == example.doc_id for hit in hits])
        weight = f" {ranking.word_weight}" if ranking.mode == "hybrid" else ""
        weight += " and proximity" if ranking.reads_texts else ""
        weight += " and tokens" if ranking.reads_tokens else ""
        for k in (1, 2, 4):
            share = float(np.mean([any(hits[:k]) for hits in found]))
            report.add(Figure(f"squad_dev, {ranking.mode}{weight}, {state}: recall@{k}", share, ""))
        report.add(Figure(f"squad_dev, {ranking.mode}{weight}, {state}: p50", float(np.median(taken)) * 1e3, "ms"))
