"""Late interaction: two sentences in a row count, signs are kept, and the ranking adds what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from cmt_core.retrieval.hybrid import HybridIndex
from cmt_core.retrieval.late_interaction import DocumentKeys, QueryKeys, closeness, pack_tokens
from cmt_core.retrieval.ranking import Ranking
from cmt_core.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from tests.unit.conftest import TinyFolders

SIGNS = np.where(np.random.default_rng(0).normal(size=(6, 64)) > 0, 1.0, -1.0).astype(np.float32)


def test_the_best_two_sentences_in_a_row_count() -> None:
    near, far = pack_tokens(SIGNS[[0, 2, 1, 3]], [0, 2]), pack_tokens(SIGNS[[0, 2, 4, 3, 1]], [0, 2, 4])
    together, apart = closeness(SIGNS[:2], [near, far])
    assert together == pytest.approx(1.0, abs=1e-5)
    assert apart < 0.7  # its sentences hold one word each, and a third one stands between them
    assert closeness(SIGNS[:2], [far]) == pytest.approx([apart])  # whatever it is compared beside


def test_a_word_in_other_words_comes_closer_than_another_word() -> None:
    alike = SIGNS[0] * np.linspace(0.1, 2, 64, dtype=np.float32)
    assert closeness(SIGNS[:1], [pack_tokens(alike[None], [0])])[0] > 0.9
    assert closeness(SIGNS[:1], [pack_tokens(SIGNS[1:2], [0])])[0] < 0.5


@pytest.mark.parametrize("starts", [[], [0], [3, 1, 1, 900], [0, 1, 2, 3]])
def test_sentences_may_start_anywhere_or_be_cut_off(starts: list[int]) -> None:
    (close,) = closeness(SIGNS[:1], [pack_tokens(SIGNS[:4], starts)])
    assert close == pytest.approx(1.0, abs=1e-5)


def test_no_tokens_are_no_bytes_and_nothing_is_close_to_no_question() -> None:
    nothing = np.zeros((0, 64), dtype=np.float32)
    assert pack_tokens(nothing, [0]) == b""
    assert closeness(nothing, [pack_tokens(SIGNS, [0])]) == [0.0]
    assert closeness(SIGNS, []) == []


@pytest.mark.parametrize("packed", [b"", b"abc", b"\xff\xff\x40\x00\x01\x00\x00\x00", pack_tokens(SIGNS, [0])[:-1]])
def test_damaged_bytes_are_told(packed: bytes) -> None:
    with pytest.raises(ValueError, match="no packed tokens"):
        closeness(SIGNS, [packed])


def test_tokens_of_another_encoder_are_told() -> None:
    with pytest.raises(ValueError, match="do not have the 32 numbers"):
        closeness(SIGNS[:, :32], [pack_tokens(SIGNS, [0])])


def test_as_many_texts_as_keys() -> None:
    with pytest.raises(ValueError, match="2 keys, and the tokens of 1 texts"):
        DocumentKeys(np.zeros((2, 4)), [b""])
    with pytest.raises(ValueError, match="1 keys, and the tokens of 0 questions"):
        QueryKeys(np.zeros((1, 4)), [])


def test_the_encoder_gives_keys_and_tokens_of_one_pass(tiny_folders: TinyFolders, corpus: tuple[str, ...]) -> None:
    encoder = Retriever(tiny_folders.retriever, torch.device("cpu"))
    documents, questions = encoder.document_keys(corpus[:5]), encoder.query_keys(corpus[:5])
    np.testing.assert_array_equal(documents.vectors, questions.vectors)
    for number, asked in enumerate(questions.tokens):
        assert asked.shape[1] == encoder.d_key
        close = closeness(asked, documents.tokens)
        assert max(close) == close[number]
    together = encoder.document_keys(corpus[:5])
    alone = [encoder.document_keys([text]) for text in corpus[:5]]
    assert [len(one.tokens[0]) for one in alone] == [len(tokens) for tokens in together.tokens]


def found(ranking: Ranking, tokens: list[bytes], asked: np.ndarray | None) -> list[int]:
    """The order of three texts that keys, words and proximity say the same of."""
    index = HybridIndex(["red harbour"] * 3, np.ones((3, 2), np.float32), ranking, tokens=tokens)
    (hits,) = index.nearest(["harbour"], np.ones((1, 2), np.float32), 3, tokens=[] if asked is None else [asked])
    return [hit.row for hit in hits]


def test_the_ranking_adds_what_the_tokens_say() -> None:
    tokens = [pack_tokens(SIGNS[[at]], [0]) for at in (1, 2, 0)]
    assert found(Ranking(), tokens, SIGNS[:1])[0] == 2
    assert found(Ranking(token_weight=0.0), tokens, SIGNS[:1]) == [0, 1, 2]
    assert found(Ranking(), tokens, None) == [0, 1, 2]  # a question without them
    assert found(Ranking("hybrid", proximity_weight=0.0), tokens, SIGNS[:1])[0] == 2


def test_rows_of_an_older_bank_are_neither_first_nor_last_for_want_of_tokens() -> None:
    tokens = [pack_tokens(-SIGNS[:1], [0]), b"", pack_tokens(SIGNS[:1], [0])]
    assert found(Ranking(), tokens, SIGNS[:1]) == [2, 1, 0]
    assert found(Ranking(), [b""] * 3, SIGNS[:1]) == [0, 1, 2]


def test_ranks_keep_their_spread_so_that_one_temperature_suits_any_weight() -> None:
    ranking = Ranking(proximity_weight=0.0, token_weight=5.0)
    packed = {1: pack_tokens(SIGNS[:1], [0])}
    ranks = ranking.looked_at("x", SIGNS[:1], {1: 1.0, 2: 0.5}, {1: "a"}, packed)
    assert ranks == pytest.approx({1: (1.0 + 5.0) / 1.45, 2: 0.5 / 1.45}, abs=1e-4)
    assert ranking.looked_at("x", SIGNS[:1], {1: 1.0, 2: 0.5}, {1: "a"}, {}) == {1: 1.0, 2: 0.5}
