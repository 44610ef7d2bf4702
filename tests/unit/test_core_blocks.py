"""Codes of tokens in a row, turned together before they are rounded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, MemoryFormatError
from cmt_core.evaluation.rounding import with_bits
from cmt_core.llm.backbone import Backbone
from cmt_core.memory.blocks import TokenBlocks
from cmt_core.memory.code_reader import StoredCode
from cmt_core.memory.rounding import RoundedCodes
from tests.unit.conftest import CORPUS, TinyFolders


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


def test_what_a_token_tells_of_the_next_is_not_kept_twice() -> None:
    codes = following(64, 64)
    alone = RoundedCodes.fit(torch.cat(codes).std(dim=0), 8)
    blocks, sigma = TokenBlocks.fit(codes, 4)
    together = RoundedCodes.fit(sigma, 8, blocks)
    fresh, lengths = torch.stack(following(16, 64)), torch.full((16,), 64)
    errors = [float((way.round(fresh, lengths) - fresh).square().mean()) for way in (alone, together)]
    assert errors[1] < 0.5 * errors[0]
    assert len(alone.pack(fresh[:1], [64])[0]) == len(together.pack(fresh[:1], [64])[0]) == 64


@pytest.mark.parametrize("length", [1, 3, 4, 5, 63, 64])
def test_memory_depends_on_its_own_tokens_alone(length: int) -> None:
    """Neither what stands behind them in a batch, nor how far it is padded."""
    codes = following(32, 64)
    blocks, sigma = TokenBlocks.fit(codes, 4)
    rounding = RoundedCodes.fit(sigma, 16, blocks)
    row = codes[3][:length]
    padded = torch.full((2, 64, 6), 1e3)
    padded[0, :length] = row
    alone, beside = rounding.pack(row[None], [length]), rounding.pack(padded, [length, 64])
    assert alone[0] == beside[0]
    assert len(alone[0]) == -(-length // 4) * 4 * 2
    seen = rounding.round(padded, torch.tensor([length, 64]))[0, :length]
    torch.testing.assert_close(rounding.unpack(alone, [length]), seen, atol=1e-4, rtol=1e-4)


def test_several_memories_are_unpacked_one_behind_the_other() -> None:
    codes = following(32, 64)
    blocks, sigma = TokenBlocks.fit(codes, 4)
    rounding = RoundedCodes.fit(sigma, 16, blocks)
    batch = torch.stack(codes[:3])
    packed = rounding.pack(batch, [5, 64, 2])
    whole = rounding.unpack(packed, [5, 64, 2])
    assert whole.shape == (71, 6)
    torch.testing.assert_close(whole[5:69], rounding.unpack([packed[1]], [64]))
    with pytest.raises(MemoryFormatError, match="no multiple of 8"):
        rounding.unpack([packed[0][:-1]], [5])


def test_gradient_of_a_block_passes_through_what_is_kept() -> None:
    codes = following(32, 64)
    blocks, sigma = TokenBlocks.fit(codes, 4)
    rounding = RoundedCodes.fit(sigma, 8, blocks)
    z = codes[0][None].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(rounding.round(z, torch.tensor([64])).sum(), z)
    kept = (
        (torch.ones(16, 24) @ rounding.blocks.basis @ rounding.blocks.basis.T).view(1, 64, 6) if rounding.blocks else z
    )
    torch.testing.assert_close(gradient, kept, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def block_folder(
    tiny_checkpoint: Checkpoint,
    tiny_backbone: Backbone,
    tiny_memory: MemoryConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny checkpoint with four tokens a block, saved."""
    prefix = tiny_checkpoint.encoding_prefix
    codes = []
    for text in CORPUS:
        ids = torch.tensor([tiny_backbone.tokenizer(text)["input_ids"]])
        codes.append(tiny_checkpoint.code.encode(tiny_backbone.read(ids, torch.ones_like(ids), prefix)[0]).detach())
    blocks, sigma = TokenBlocks.fit(codes, 4)
    config = dataclasses.replace(tiny_memory, block_tokens=4, bits_per_token=96)
    folder = tmp_path_factory.mktemp("blocks") / "checkpoint"
    dataclasses.replace(tiny_checkpoint, config=config, rounding=RoundedCodes.fit(sigma, 96, blocks)).save(folder)
    return folder


def test_checkpoint_of_blocks_writes_memories_and_answers(block_folder: Path, tiny_folders: TinyFolders) -> None:
    model = dataclasses.replace(tiny_folders, checkpoint=block_folder).load_cmt()
    windows = [model.windows("", text)[0] for text in CORPUS[:3]]
    memories = model.compress(windows)
    assert {len(memory.code) for memory in memories} == {model.memory_bytes} == {2 + 64 * 12}
    stored = StoredCode.load(block_folder).reader(torch.device("cpu"), torch.float32)  # as vLLM's workers read them
    for memory in memories:
        rows = model.format.read([memory.code])[0]
        assert rows.shape == (memory.n_tokens, model.backbone.shape.width)
        torch.testing.assert_close(stored.read([memory.code])[0], rows.float(), atol=2e-2, rtol=2e-2)
    (answer,) = model.answer(["Who?"], [[memory.code for memory in memories]], max_new_tokens=4)
    assert answer.completion_tokens >= 1
    half = with_bits(model, 48)
    assert len(half.compress(windows)[0].code) == half.memory_bytes == 2 + 64 * 6
    assert with_bits(model, 0).config.block_tokens == 1


@pytest.mark.parametrize("wrong", ["rows", "numbers", "missing"])
def test_damaged_block_checkpoint_is_refused(wrong: str, block_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(block_folder / "weights.safetensors")
    basis = tensors.pop("block_basis")
    if wrong != "missing":
        tensors["block_basis"] = (basis[1:] if wrong == "rows" else basis[:, 1:]).contiguous()
    save_file(tensors, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text((block_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"block_basis|bits has shape"):
        Checkpoint.load(tmp_path)


def test_checkpoint_without_the_word_has_blocks_of_one(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """Checkpoints from before there were blocks don't say."""
    described = json.loads((tiny_folders.checkpoint / "config.json").read_text())
    del described["memory"]["block_tokens"]
    assert MemoryConfig.from_dict(described["memory"]).block_tokens == 1


@pytest.mark.parametrize("tokens", [0, 3, 512])
def test_blocks_fill_a_window(tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"block_tokens {tokens} does not divide"):
        MemoryConfig(block_tokens=tokens)
    with pytest.raises(ConfigError, match="block_tokens is 1"):
        MemoryConfig(block_tokens=4, code_storage="float16")
