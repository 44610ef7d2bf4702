"""Codes kept close to their entropy: the coder, what a memory's bytes hold, and checkpoints that have it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, MemoryFormatError
from cmt_core.evaluation.rounding import with_bits
from cmt_core.llm.backbone import Backbone
from cmt_core.memory.code_reader import StoredCode
from cmt_core.memory.entropy_coder import MOST, EntropyCoder, normal_frequencies
from cmt_core.memory.entropy_codes import EntropyCodes
from cmt_core.memory.rounding import RoundedCodes, fitted_rounding
from cmt_core.vllm_engine.loading import ContextLoader
from tests.unit.conftest import CORPUS, TinyFolders
from tests.unit.test_core_blocks import following

WIDTH = 24
DEVIATIONS = [0.25, 1.0, 4.0, 40.0, 120.0]
CODER = EntropyCoder(normal_frequencies(DEVIATIONS))


def levels_of(tables: np.ndarray, seed: int) -> torch.Tensor:
    """Normal levels of the tables' deviations, as far as these reach."""
    deviations = np.array([0.0, *DEVIATIONS])[tables]
    drawn = np.random.default_rng(seed).normal(size=tables.shape) * deviations
    reach = CODER.reach.numpy()[tables]
    return torch.from_numpy(np.clip(np.rint(drawn), -reach, reach).astype(np.int64))


def test_tables_name_every_level_s_share() -> None:
    shares = CODER.frequencies.long()
    assert (shares.sum(dim=1) == 2**14).all()
    assert torch.equal(shares, shares.flip(1))
    assert CODER.reach.tolist() == [0, 2, 5, 20, 200, MOST]
    assert (CODER.bits[0, 0], CODER.bits[0, 1]) == (0, float("inf"))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), lanes=st.lists(st.integers(1, 9), min_size=1, max_size=4), steps=st.integers(1, 40)
)
def test_levels_come_back_from_their_bytes(seed: int, lanes: list[int], steps: int) -> None:
    shape = (steps, len(lanes), max(lanes))
    tables = np.random.default_rng(seed).integers(0, 1 + len(DEVIATIONS), size=shape)
    tables[:, np.arange(max(lanes))[None] >= np.array(lanes)[:, None]] = 0
    levels = levels_of(tables, seed)
    streams = CODER.encode(levels, torch.from_numpy(tables), lanes)
    padded = [stream + bytes(seed % 7) for stream in streams]
    np.testing.assert_array_equal(CODER.decode(padded, tables, lanes), levels.numpy())
    alone = CODER.encode(levels[:, :1, : lanes[0]], torch.from_numpy(tables[:, :1, : lanes[0]]), lanes[:1])
    assert alone[0] == streams[0]  # whatever else is in the batch


def test_streams_are_as_long_as_their_entropy_says() -> None:
    tables = np.random.default_rng(0).integers(0, 1 + len(DEVIATIONS), size=(900, 2, 64))
    levels = levels_of(tables, 1)
    costs = CODER.bits[torch.from_numpy(tables), levels.abs()].double().sum(dim=(0, 2)) + CODER.overhead(64)
    for stream, cost in zip(CODER.encode(levels, torch.from_numpy(tables), [64, 64]), costs.tolist(), strict=True):
        assert 8 * len(stream) == pytest.approx(cost, rel=5e-3)


def test_outermost_levels_can_be_had() -> None:
    tables = np.full((3, 1, 2), len(DEVIATIONS))
    levels = torch.tensor([[[MOST, -MOST]], [[-MOST, MOST]], [[0, 1]]])
    stream = CODER.encode(levels, torch.from_numpy(tables), [2])
    np.testing.assert_array_equal(CODER.decode(stream, tables, [2]), levels.numpy())


def test_damaged_streams_are_refused() -> None:
    tables = np.full((200, 1, 4), 3)
    levels = levels_of(tables, 5)
    (stream,) = CODER.encode(levels, torch.from_numpy(tables), [4])
    for place in range(0, len(stream), 7):
        damaged = bytearray(stream)
        damaged[place] ^= 0x40
        with pytest.raises(MemoryFormatError, match="damaged"):
            CODER.decode([bytes(damaged)], tables, [4])
    with pytest.raises(MemoryFormatError, match="lacks the states"):
        CODER.decode([stream[:15]], tables, [4])
    with pytest.raises(MemoryFormatError, match="damaged"):
        CODER.decode([stream[:-8]], tables, [4])


def fitted(bits: int, tokens: int = 4) -> EntropyCodes:
    """For codes in which each token resembles the one before it."""
    config = MemoryConfig(
        code_width=WIDTH, window_tokens=64, block_tokens=tokens, bits_per_token=bits, code_storage="entropy"
    )
    rounding = fitted_rounding(config, following(64, 64, WIDTH))
    assert isinstance(rounding, EntropyCodes)
    return rounding


def test_fewer_errors_at_the_same_bytes() -> None:
    sigma = torch.cat(following(64, 64, WIDTH)).std(dim=0)
    fresh, lengths = torch.stack(following(16, 64, WIDTH)), torch.full((16,), 64)
    errors = [
        float((way.round(fresh, lengths) - fresh).square().mean())
        for way in (RoundedCodes.fit(sigma, 96), fitted(96), fitted(96, tokens=2))
    ]
    assert errors[1] < errors[2] < errors[0]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("tokens", [2, 4, 8])
@pytest.mark.parametrize("length", [1, 3, 5, 63, 64])
def test_memory_depends_on_its_own_tokens_alone(tokens: int, length: int) -> None:
    """Neither what stands behind them in a batch, nor how far it is padded."""
    rounding = fitted(96, tokens)
    row = following(32, 64, WIDTH)[3][:length]
    padded = torch.full((2, 64, WIDTH), 1e3)
    padded[0, :length] = row
    alone, beside = rounding.pack(row[None], [length]), rounding.pack(padded, [length, 64])
    assert alone[0] == beside[0]
    assert len(alone[0]) == -(-length // tokens) * tokens * 12
    seen = rounding.round(padded, torch.tensor([length, 64]))[0, :length]
    torch.testing.assert_close(rounding.unpack(alone, [length]), seen, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([48, 64, 96]),
    tokens=st.sampled_from([1, 4]),
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    size=st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e6, 1e30, float("inf"), float("nan")]),
)
def test_any_codes_fit_into_their_bytes(seed: int, bits: int, tokens: int, lengths: list[int], size: float) -> None:
    rounding = fitted(bits, tokens)
    codes = size * torch.randn(len(lengths), 64, WIDTH, generator=torch.Generator().manual_seed(seed))
    packed = rounding.pack(codes, lengths)
    assert [len(memory) for memory in packed] == [-(-length // tokens) * tokens * bits // 8 for length in lengths]
    whole = rounding.unpack(packed, lengths)
    assert whole.shape == (sum(lengths), WIDTH)
    assert whole.isfinite().all()


def test_many_memories_are_unpacked_one_behind_the_other() -> None:
    """More than are read at once, each as it is alone."""
    rounding, lengths = fitted(64), [1 + 3 * number for number in range(20)]
    packed = rounding.pack(torch.stack(following(20, 64, WIDTH)), lengths)
    alone = [rounding.unpack([memory], [length]) for memory, length in zip(packed, lengths, strict=True)]
    torch.testing.assert_close(rounding.unpack(packed, lengths), torch.cat(alone))


def test_step_is_the_finest_that_fits() -> None:
    rounding = fitted(64)
    codes = torch.stack(following(4, 64, WIDTH))
    (memory, *_) = rounding.pack(codes, [64] * 4)
    left = len(memory) - len(memory.rstrip(b"\0"))
    assert left < 0.03 * len(memory)
    less = rounding.with_bits(32).pack(codes, [64] * 4)[0]
    assert len(less) == len(memory) // 2
    assert int.from_bytes(less[:2], "little", signed=True) > int.from_bytes(memory[:2], "little", signed=True)


def test_gradient_passes_through_what_is_kept() -> None:
    rounding = fitted(64)
    z = following(32, 64, WIDTH)[0][None].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(rounding.round(z, torch.tensor([64])).sum(), z)
    basis = rounding.blocks.basis
    kept = (torch.ones(16, 4 * WIDTH) @ basis @ basis.T).view(1, 64, WIDTH)
    torch.testing.assert_close(gradient, kept, atol=1e-4, rtol=1e-4)


def test_too_few_bytes_for_the_coder_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 12 bits a token, not 8"):
        fitted(8)
    with pytest.raises(ConfigError, match="at least 48 bits"):
        fitted(64, tokens=1).with_bits(40)


def test_foreign_memories_are_refused() -> None:
    rounding = fitted(64)
    packed = rounding.pack(torch.stack(following(2, 64, WIDTH)), [64, 64])
    with pytest.raises(MemoryFormatError, match="of 511 bytes, not 512"):
        rounding.unpack([packed[0][:-1]], [64])
    for step in (-(2**15), 2**15 - 1, 77):
        with pytest.raises(MemoryFormatError, match="damaged"):
            rounding.unpack([step.to_bytes(2, "little", signed=True) + packed[0][2:]], [64])


@pytest.fixture(scope="module")
def entropy_folder(
    tiny_checkpoint: Checkpoint,
    tiny_backbone: Backbone,
    tiny_memory: MemoryConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny checkpoint with its codes kept close to their entropy, saved."""
    assert tiny_checkpoint.code is not None
    codes = []
    for text in CORPUS:
        ids = torch.tensor([tiny_backbone.tokenizer(text)["input_ids"]])
        rows = tiny_backbone.read(ids, torch.ones_like(ids), tiny_checkpoint.encoding_prefix)[0]
        codes.append(tiny_checkpoint.code.encode(rows).detach())
    config = dataclasses.replace(tiny_memory, block_tokens=4, bits_per_token=96, code_storage="entropy")
    folder = tmp_path_factory.mktemp("entropy") / "checkpoint"
    dataclasses.replace(tiny_checkpoint, config=config, rounding=fitted_rounding(config, codes)).save(folder)
    return folder


def test_checkpoint_writes_memories_and_answers(entropy_folder: Path, tiny_folders: TinyFolders) -> None:
    model = dataclasses.replace(tiny_folders, checkpoint=entropy_folder).load_cmt()
    windows = [model.windows("", text)[0] for text in CORPUS[:3]]
    memories = model.compress(windows)
    assert {len(memory.code) for memory in memories} == {model.memory_bytes} == {2 + 64 * 12}
    stored = StoredCode.load(entropy_folder).reader(torch.device("cpu"), torch.float32)  # as vLLM's workers read them
    for memory in memories:
        rows = model.format.read([memory.code])[0]
        assert rows.shape == (memory.n_tokens, model.backbone.shape.width)
        torch.testing.assert_close(stored.read([memory.code])[0], rows.float(), atol=2e-2, rtol=2e-2)
    (answer,) = model.answer(["Who?"], [[memory.code for memory in memories]], max_new_tokens=4)
    assert answer.completion_tokens >= 1
    half = with_bits(model, 48)
    assert len(half.compress(windows)[0].code) == half.memory_bytes == 2 + 64 * 6
    assert StoredCode.load(entropy_folder, 48).rounding.bits_per_token == 48  # type: ignore[union-attr]
    with pytest.raises(MemoryFormatError, match="damaged"):
        model.format.read([memories[0].code[:40] + memories[1].code[40:]])


@pytest.mark.parametrize("bits", [96, 48])
def test_a_memory_that_says_nothing_can_be_read_and_vllms_workers_warm_up_with_it(
    entropy_folder: Path, tiny_folders: TinyFolders, bits: int
) -> None:
    for folder, own_bits in ((entropy_folder, bits), (tiny_folders.checkpoint, None)):
        stored = StoredCode.load(folder, own_bits)
        reader = stored.reader(torch.device("cpu"), torch.float32)
        for tokens in (1, 7, stored.config.window_tokens):
            (rows,) = reader.read([reader.blank(tokens)])
            assert len(rows) == tokens
            assert float(rows.std(dim=0).max() if tokens > 1 else 0) < 0.2  # all tokens alike, to the code's rounding
        llm = AutoConfig.from_pretrained(tiny_folders.llm)
        ContextLoader.of(folder, llm, torch.device("cpu"), torch.float32, bits_per_token=own_bits).warm_up()


@pytest.mark.parametrize("wrong", ["block_basis", "scales", "frequencies", "shares", "missing"])
def test_damaged_checkpoint_is_refused(wrong: str, entropy_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(entropy_folder / "weights.safetensors")
    if wrong == "missing":
        del tensors["scales"]
    elif wrong == "shares":
        tensors["frequencies"][3, MOST] += 1
    else:
        tensors[wrong] = tensors[wrong][..., 1:].contiguous()
    save_file(tensors, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text((entropy_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="can't be read"):
        Checkpoint.load(tmp_path)


def test_too_few_bits_are_a_checkpoint_error(entropy_folder: Path, tmp_path: Path) -> None:
    described = json.loads((entropy_folder / "config.json").read_text())
    described["memory"]["bits_per_token"] = 8
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(load_file(entropy_folder / "weights.safetensors"), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="at least 12 bits a token"):
        Checkpoint.load(tmp_path)
