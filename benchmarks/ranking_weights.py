"""Recall as the ranking finds it with each weight of the token vectors, and the temperature of ψ's prior that goes with it.

    CMT_DATA_DIR=... python -m benchmarks.ranking_weights --dataset qa_train.jsonl.gz --sources squad1.1-train-sample new_wiki
    CMT_DATA_DIR=... python -m benchmarks.ranking_weights --questions 2000

Weights are chosen on training questions. The log-share is what softmax(rank / temperature) over the first four documents gives
the question's own, the mean over the questions where it is one of them.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from cmt_core.data.qa import QAExample
from cmt_core.data.readers import read_examples
from cmt_core.evaluation.stream import sample
from cmt_core.llm.control_tokens import SafeTokenizer
from cmt_core.llm.model_source import resolve_model
from cmt_core.retrieval.hybrid import HybridIndex
from cmt_core.retrieval.ranking import Ranking
from cmt_core.retrieval.retriever import Retriever
from cmt_core.shipped import CACHE_DIR, LLM, RETRIEVER
from cmt_core.text.windows import split_document

__all__ = ["table"]

_K = 4
_TEMPERATURES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8)
_LEAST = -5.0  # a log-share: one that is lost is not chased


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="squad_dev.jsonl.gz")
    parser.add_argument("--sources", nargs="+", default=[], help="only rows whose source contains one of these")
    parser.add_argument("--since", default="", help="only rows of this date (YYYY-MM-DD) or later")
    parser.add_argument("--documents", type=int, help="a sample of so many; default all")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0])
    chosen = parser.parse_args()
    rows = [
        row
        for row in read_examples(Path(os.environ.get("CMT_DATA_DIR", "data")) / chosen.dataset)
        if row.date >= chosen.since and (not chosen.sources or any(one in (row.source or "") for one in chosen.sources))
    ]
    documents, asked = sample(rows, chosen.questions, chosen.documents, 0)
    encoder = Retriever(resolve_model(RETRIEVER, CACHE_DIR.expanduser(), print), torch.device("cpu"))
    llm = SafeTokenizer(AutoTokenizer.from_pretrained(resolve_model(LLM, CACHE_DIR.expanduser(), print)))
    for line in table(encoder, documents, asked, chosen.weights, lambda text: len(llm.ids(text))):
        print(line, flush=True)


def table(
    encoder: Retriever,
    documents: Sequence[tuple[str, str, str]],
    asked: Sequence[QAExample],
    weights: Sequence[float],
    count: Callable[[str], int] = len,
) -> list[str]:
    """A line a weight: recall@1, @2 and @4, and the temperature of the highest log-share.

    `count` are an LLM's tokens of a text.
    """
    windows = [(doc, window) for doc, title, text in documents for window in split_document(title, text, 256, count)]
    texts = [window.reading for _, window in windows]
    names = [(doc, window.number) for doc, window in windows]
    questions = [row.question for row in asked]
    keys, wanted = encoder.document_keys(texts), encoder.query_keys(questions)
    kept = sum(map(len, keys.tokens)) / max(1, len(texts))
    lines = [f"{len(texts)} windows of {len(documents)} documents, {kept / 1000:.1f} kB of tokens a window"]
    for weight in weights:
        index = HybridIndex(texts, keys.vectors, Ranking(token_weight=weight), names, keys.tokens)
        found = index.nearest(questions, wanted.vectors, _K, tokens=wanted.tokens)
        own = [
            next((place for place, hit in enumerate(hits) if names[hit.row][0] == row.doc_id), None)
            for hits, row in zip(found, asked, strict=True)
        ]
        recall = ", ".join(f"{100 * sum(p is not None and p < k for p in own) / len(own):.2f}" for k in (1, 2, _K))
        ranks = [([hit.score for hit in hits], p) for hits, p in zip(found, own, strict=True) if p is not None]
        shares = {temperature: _log_share(ranks, temperature) for temperature in _TEMPERATURES}
        best = max(shares, key=lambda temperature: shares[temperature])
        lines.append(
            f"token weight {weight:g}: recall {recall}; temperature {best:g} log-share {shares[best]:.4f} "
            f"({', '.join(f'{at:g}: {share:.4f}' for at, share in shares.items())})"
        )
    return lines


def _log_share(ranks: Sequence[tuple[Sequence[float], int]], temperature: float) -> float:
    total = 0.0
    for scores, own in ranks:
        top = max(scores)
        whole = math.log(sum(math.exp((one - top) / temperature) for one in scores))
        total += max(_LEAST, (scores[own] - top) / temperature - whole)
    return total / max(1, len(ranks))


if __name__ == "__main__":
    main()
