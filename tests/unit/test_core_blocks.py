"""Codes of tokens in a row, turned together before they are rounded: memories of them are in test_core_entropy.py."""

from __future__ import annotations

import pytest
import torch

from cmt_core.config import MemoryConfig
from cmt_core.errors import ConfigError
from cmt_core.memory.blocks import TokenBlocks


def following(texts: int, tokens: int, width: int = 6) -> list[torch.Tensor]:
    """Codes in which each token resembles the one before it."""
    seed = torch.Generator().manual_seed(0)
    noise = torch.randn(texts, tokens, width, generator=seed)
    rows = [noise[:, 0]]
    for place in range(1, tokens):
        rows.append(0.95 * rows[-1] + 0.3 * noise[:, place])
    return list(torch.stack(rows, dim=1))


def test_whole_basis_is_orthonormal_and_gives_codes_back() -> None:
    codes = following(8, 40)
    blocks, sigma = TokenBlocks.fit(codes, 4)
    torch.testing.assert_close(blocks.basis.T @ blocks.basis, torch.eye(24), atol=2e-3, rtol=0)
    assert (sigma.diff() <= 0).all()
    batch = torch.stack([codes[0][:10], codes[1][:10]])
    back = blocks.codes(blocks.of(batch, torch.tensor([10, 7])))
    assert back.shape == (2, 12, 6)
    torch.testing.assert_close(back[0, :10], batch[0], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(back[1, :7], batch[1, :7], atol=1e-2, rtol=1e-2)


def test_checkpoint_without_the_word_has_blocks_of_one() -> None:
    """Checkpoints from before there were blocks don't say."""
    described = MemoryConfig().to_dict()
    del described["block_tokens"]
    assert MemoryConfig.from_dict(described).block_tokens == 1


@pytest.mark.parametrize("tokens", [0, 3, 512])
def test_blocks_fill_a_window(tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"block_tokens {tokens} does not divide"):
        MemoryConfig(block_tokens=tokens)


@pytest.mark.parametrize("storage", ["packed", "float16"])
def test_blocks_are_for_entropy(storage: str) -> None:
    with pytest.raises(ConfigError, match=f"code_storage {storage} keeps every token's own code"):
        MemoryConfig(block_tokens=4, code_storage=storage)
