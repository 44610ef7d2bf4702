"""Late interaction in benchmarks/ranking_tokens.py: words close together in meaning, sizes, and a table of a real encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from benchmarks.ranking_tokens import closeness, rounded, table
from cmt_core.data.qa import QAExample

if TYPE_CHECKING:
    from tests.unit.conftest import TinyFolders

AXES = np.eye(4, dtype=np.float32)


def test_two_sentences_in_a_row_count_and_rare_words_more() -> None:
    asked, rarity = AXES[:2], np.array([3.0, 1.0], dtype=np.float32)
    near, far = AXES[[0, 2, 1, 2, 3]], AXES[[0, 2, 3, 2, 1]]
    cuts = np.array([0, 2, 4])
    assert closeness(asked, rarity, [near, far], [cuts, cuts]) == pytest.approx([1.0, 0.75])
    assert closeness(asked, rarity, [AXES[[1]]], [np.array([0])]) == pytest.approx([0.25])


def test_fewer_bits_keep_less_of_a_vector() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = [float((rounded(vectors, None, bits) * vectors).sum(axis=1).mean()) for bits in (32, 8, 4, 2, 1)]
    assert kept[0] == pytest.approx(1.0)
    assert sorted(kept, reverse=True) == kept
    assert kept[-1] > 0.7


def test_the_table_is_of_a_real_encoder_and_its_states_are_kept(
    tiny_folders: TinyFolders, corpus: tuple[str, ...], tmp_path: Path
) -> None:
    from cmt_core.retrieval.retriever import Retriever

    encoder = Retriever(tiny_folders.retriever, torch.device("cpu"))
    documents = [(f"d{number}", "", text) for number, text in enumerate(corpus)]
    asked = [QAExample(doc_id, "", text, text, ("x",)) for doc_id, _, text in documents]
    kept = tmp_path / "states.npz"
    lines = table(encoder, documents, asked, [(32, 32), (8, 4)], [2.0], kept)
    assert [line.partition(":")[0].partition(", ")[0] for line in lines] == [
        "today's ranking",
        *["32 numbers of 32 bits"] * 2,
        *["8 numbers of 4 bits"] * 2,
    ]
    assert lines[1].endswith("alone: 100.00, 100.00, 100.00")  # each question is its document, word for word
    assert table(encoder, documents, asked, [(32, 32), (8, 4)], [2.0], kept)[0] == lines[0]
    (states,) = encoder.states(corpus[:1])
    assert states.shape == (len(encoder.token_ids(corpus[:1])[0]), encoder.d_key)
    mean = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
    assert float(mean @ torch.from_numpy(encoder.keys(corpus[:1])[0]).float()) == pytest.approx(1.0, abs=2e-3)
