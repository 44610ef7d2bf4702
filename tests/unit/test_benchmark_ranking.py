"""benchmarks/ranking_weights.py on a tiny encoder: a line a weight, of the ranking that the service has."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from benchmarks.ranking_weights import table
from cmt_core.data.qa import QAExample
from cmt_core.retrieval.retriever import Retriever


def test_a_line_says_what_is_found_and_how_sure_the_ranks_are(
    tiny_retriever_folder: Path, corpus: tuple[str, ...]
) -> None:
    encoder = Retriever(tiny_retriever_folder, torch.device("cpu"))
    documents = [(f"d{number}", "", text) for number, text in enumerate(corpus)]
    asked = [QAExample(doc, "", text, text, ("x",)) for doc, _, text in documents]
    first, *lines = table(encoder, documents, asked, [0.0, 5.0])
    assert first.startswith(f"{len(corpus)} windows of {len(corpus)} documents")
    assert [line.partition(":")[0] for line in lines] == ["token weight 0", "token weight 5"]
    for line in lines:
        assert "recall 100.00, 100.00, 100.00" in line  # each question is its document, word for word
        shares = [float(share) for share in re.findall(r"[\d.]+: (-?\d\.\d+)", line)]
        assert max(shares) <= 0
        assert f"log-share {max(shares):.4f}" in line
    assert lines[0].partition("temperature")[2] != lines[1].partition("temperature")[2]
