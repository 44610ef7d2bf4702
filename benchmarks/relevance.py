"""Chooses `serve.min_score` on data: how often questions with and without their article in the bank pass a threshold.

    CMT_DATA_DIR=... python -m benchmarks.relevance [--documents 600] [--questions 1000]

Three kinds of questions: their article is in the bank; it is not, though others on the same subject may be; and questions of
another dataset, on subjects that the bank knows nothing of. Only the retriever is needed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from cmt_core.data.qa import read_qa
from cmt_core.llm.backbone import pick_device
from cmt_core.llm.model_source import resolve_model
from cmt_core.retrieval.retriever import Retriever
from cmt_core.text.windows import split_document
from services.settings import load_settings

RESULT = Path(__file__).parent / "results" / "relevance.json"
THRESHOLDS = [round(0.05 * step, 2) for step in range(3, 14)]


def main(
    dataset: Annotated[str, typer.Option(help="Dataset inside data_dir.")] = "squad_dev.jsonl.gz",
    foreign: Annotated[str, typer.Option(help="Dataset with questions on other subjects.")] = "fairytaleqa.jsonl.gz",
    documents: Annotated[int, typer.Option(min=20, help="Articles in the bank.")] = 600,
    questions: Annotated[int, typer.Option(min=20, help="Questions of each kind.")] = 1000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Prints, for every threshold, the shares of questions that are let through, and writes them to benchmarks/results."""
    settings = load_settings()
    torch.set_num_threads(2)
    folder = resolve_model(settings.model.retriever, settings.model.cache_dir.expanduser(), print)
    retriever = Retriever(folder, pick_device("cpu"))
    examples = list(read_qa(settings.data_dir / dataset))
    texts = {example.doc_id: (example.title, example.text) for example in examples}
    ids = sorted(texts)
    random.Random(seed).shuffle(ids)
    inside, outside = set(ids[:documents]), set(ids[documents : 2 * documents])
    windows = [
        (doc_id, window.reading)
        for doc_id in sorted(inside)
        for window in split_document(*texts[doc_id], 256, lambda part: len(part.split()) * 4 // 3)
    ]
    bank = retriever.keys([reading for _, reading in windows]).astype(np.float32)
    random.Random(seed + 1).shuffle(examples)
    others = list(read_qa(settings.data_dir / foreign))
    random.Random(seed + 1).shuffle(others)
    asked = {
        "answerable": [example.question for example in examples if example.doc_id in inside],
        "article_missing": [example.question for example in examples if example.doc_id in outside],
        "foreign": [example.question for example in others],
    }
    best = {
        name: (retriever.query_keys(own[:questions]).astype(np.float32) @ bank.T).max(axis=1)
        for name, own in asked.items()
    }
    best["answerable_and_found_first"] = _found_first(
        [example.doc_id for example in examples if example.doc_id in inside][:questions],
        [doc_id for doc_id, _ in windows],
        retriever.query_keys(asked["answerable"][:questions]).astype(np.float32) @ bank.T,
    )
    rows = [
        {"min_score": threshold}
        | {f"{name}_passed": round(float((scores >= threshold).mean()), 4) for name, scores in best.items()}
        for threshold in THRESHOLDS
    ]
    for row in rows:
        print(json.dumps(row))
    RESULT.parent.mkdir(exist_ok=True)
    about = {"dataset": dataset, "foreign": foreign, "documents": documents, "windows": len(windows), "seed": seed}
    about |= {"questions": {name: len(scores) for name, scores in best.items()}}
    RESULT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def _found_first(wanted: list[str], doc_ids: list[str], scores: np.ndarray) -> np.ndarray:
    """Best scores (N,) of those questions whose own article comes first: only they can lose an answer to the threshold."""
    first = scores.argmax(axis=1)
    right = np.array([doc_ids[row] == doc_id for row, doc_id in zip(first, wanted, strict=True)])
    return scores.max(axis=1)[right]


if __name__ == "__main__":
    typer.run(main)
