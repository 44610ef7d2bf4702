"""Documents become memories of one size that depend on their text alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmt_core.errors import ConfigError
from cmt_core.llm.backbone import KVShape
from cmt_core.memory.compressor import KVCode
from cmt_core.memory.quantiser import Quantiser
from cmt_core.model import CMT
from cmt_core.text.windows import Window

SHAPE = KVShape(layers=2, heads=2, head_dim=4)  # X = 32


def rows_of_rank(rank: int, n: int = 300) -> torch.Tensor:
    """Rows (N, X) in a subspace of `rank` dimensions, off centre and of unlike scale by layer."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, rank, generator=generator) @ torch.randn(rank, SHAPE.width, generator=generator)
    return x * torch.linspace(0.1, 10.0, 4).repeat_interleave(8) + 5.0


@torch.no_grad()
def relative_error(code: KVCode, x: torch.Tensor) -> float:
    restored = code.decode(code.encode(x), x.dtype)
    return float((restored - x).square().mean() / (x - x.mean(dim=0)).square().mean())


def test_pca_start_restores_rows_whose_rank_the_code_holds() -> None:
    x = rows_of_rank(6)
    code = KVCode(SHAPE, 6)
    torch.manual_seed(0)
    sigma = code.start_from_pca(x, SHAPE)
    assert sigma.shape == (6,)
    assert relative_error(code, x) < 1e-5


@pytest.mark.parametrize("width", [16, 32])
def test_code_as_wide_as_the_rows_restores_them(width: int) -> None:
    x = rows_of_rank(width)
    code = KVCode(SHAPE, width)
    torch.manual_seed(0)
    code.start_from_pca(x, SHAPE)
    assert relative_error(code, x) < 1e-4


def test_wider_code_restores_more() -> None:
    x = rows_of_rank(24)
    errors = []
    for width in (2, 8, 16):
        code = KVCode(SHAPE, width)
        torch.manual_seed(0)
        code.start_from_pca(x, SHAPE)
        errors.append(relative_error(code, x))
    assert errors[0] > errors[1] > errors[2] > 0.001


def test_deviations_are_those_of_the_codes_in_falling_order() -> None:
    x = rows_of_rank(12)
    code = KVCode(SHAPE, 8)
    torch.manual_seed(0)
    sigma = code.start_from_pca(x, SHAPE)
    torch.testing.assert_close(code.encode(x).std(dim=0), sigma, atol=1e-3, rtol=1e-3)
    assert (sigma[:-1] >= sigma[1:] - 1e-4).all()


def test_too_few_sample_tokens_for_the_code_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a code of 8 components needs at least 8 sample tokens .* there are 5 and"):
        KVCode(SHAPE, 8).start_from_pca(rows_of_rank(4, n=5), SHAPE)


def test_rounded_code_of_enough_bits_restores_nearly_as_well() -> None:
    x = rows_of_rank(8)
    code = KVCode(SHAPE, 8)
    torch.manual_seed(0)
    quantiser = Quantiser.fit(code.start_from_pca(x, SHAPE).double().numpy(), 56)
    restored = code.decode(quantiser.round(code.encode(x)), x.dtype)
    assert float((restored - x).square().mean() / (x - x.mean(dim=0)).square().mean()) < 0.002


def windows_of(cmt: CMT, corpus: tuple[str, ...]) -> list[Window]:
    return [window for text in corpus for window in cmt.windows("News", text)]


def test_every_memory_has_the_checkpoints_size(tiny_cmt: CMT, corpus: tuple[str, ...]) -> None:
    windows = windows_of(tiny_cmt, corpus)
    memories = tiny_cmt.compress(windows)
    assert {len(memory.code) for memory in memories} == {tiny_cmt.memory_bytes} == {2 + 64 * 192 // 8}
    counted = [len(tiny_cmt.backbone.tokenizer(window.reading)["input_ids"]) for window in windows]
    assert [memory.n_tokens for memory in memories] == counted


def test_identical_text_gives_identical_bytes(tiny_cmt: CMT, corpus: tuple[str, ...]) -> None:
    windows = windows_of(tiny_cmt, corpus)
    assert tiny_cmt.compress(windows) == tiny_cmt.compress(windows)
    twins = tiny_cmt.compress([windows[0], windows[0]])
    assert twins[0] == twins[1]


def test_memories_come_in_the_order_of_their_windows(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    """The order in which rows are batched may flip a level at a border between two, and nothing else."""
    windows = windows_of(exact_cmt, corpus)
    together = exact_cmt.compress(windows)
    turned = exact_cmt.compress(windows[::-1])[::-1]
    alone = [exact_cmt.compress([window])[0] for window in windows]
    for others in (turned, alone):
        for one, other in zip(together, others, strict=True):
            assert one.n_tokens == other.n_tokens
            off = np.abs(levels_of(exact_cmt, one.code) - levels_of(exact_cmt, other.code))
            assert off.max() <= 1
            assert off.mean() < 1e-3


def levels_of(cmt: CMT, code: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    n_tokens = int.from_bytes(code[:2], "little")
    return cmt.format.rounding.quantiser.unpack(code[2 : 2 + cmt.config.code_bytes(n_tokens)])


def test_different_texts_give_different_bytes(tiny_cmt: CMT, corpus: tuple[str, ...]) -> None:
    memories = tiny_cmt.compress(windows_of(tiny_cmt, corpus))
    assert len({memory.code for memory in memories}) == len(memories)


def test_no_windows_give_no_memories(tiny_cmt: CMT) -> None:
    assert tiny_cmt.compress([]) == []


def test_batches_stay_within_the_token_budget(tiny_cmt: CMT) -> None:
    lengths = [5, 64, 33, 64, 12, 1] * 40
    batches = tiny_cmt._batches(lengths)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    assert all(len(rows) * 32 * -(-max(lengths[row] for row in rows) // 32) <= 2048 for rows in batches)


def test_keys_are_unit_vectors_of_the_retriever(tiny_cmt: CMT, corpus: tuple[str, ...]) -> None:
    keys = tiny_cmt.document_keys(windows_of(tiny_cmt, corpus)).vectors
    assert keys.dtype == np.float16
    assert keys.shape == (len(corpus), tiny_cmt.d_key)
    np.testing.assert_allclose(np.linalg.norm(keys.astype(np.float32), axis=1), 1.0, atol=2e-3)
    alone = tiny_cmt.query_keys([f"News\n{corpus[3].replace(chr(10), ' ')}", "other"]).vectors
    assert alone.shape == (2, tiny_cmt.d_key)
