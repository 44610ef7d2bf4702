"""A checkpoint comes back as it was saved, or with a one-line reason why not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cmt_core.checkpoint import Checkpoint, checkpoint_folder
from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError
from cmt_core.llm.backbone import Backbone
from cmt_core.model import CMT


@pytest.fixture
def folder(tiny_folders: Any, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that may be damaged."""
    return Path(shutil.copytree(tiny_folders.checkpoint, tmp_path / "checkpoint"))


def edit_config(folder: Path, part: str, **values: Any) -> None:
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    described[part] |= values
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")


def edit_weights(folder: Path, **values: torch.Tensor) -> None:
    tensors = load_file(folder / "weights.safetensors")
    save_file(tensors | values, folder / "weights.safetensors")


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(folder)
    assert str(caught.value).startswith(f"checkpoint {folder} can't be read: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_saved_checkpoint_comes_back(tiny_checkpoint: Checkpoint, folder: Path) -> None:
    loaded = Checkpoint.load(folder)
    assert (loaded.config, loaded.shape, loaded.llm_fingerprint, loaded.training) == (
        tiny_checkpoint.config,
        tiny_checkpoint.shape,
        tiny_checkpoint.llm_fingerprint,
        {"steps": 0},
    )
    for name, tensor in tiny_checkpoint.code.state_dict().items():
        expected = tensor.half().float() if name in {"encoder", "decoder"} else tensor
        assert torch.equal(loaded.code.state_dict()[name], expected), name
    assert torch.equal(loaded.encoding_prefix, tiny_checkpoint.encoding_prefix.half().float())
    assert torch.equal(loaded.reading_prefix, tiny_checkpoint.reading_prefix.half().float())
    assert torch.equal(loaded.rounding.quantiser.steps, tiny_checkpoint.rounding.quantiser.steps)
    np.testing.assert_array_equal(loaded.rounding.quantiser.bits, tiny_checkpoint.rounding.quantiser.bits)


def test_second_save_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    Checkpoint.load(folder).save(tmp_path / "again")
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_loaded_code_is_not_trainable(folder: Path) -> None:
    assert not any(parameter.requires_grad for parameter in Checkpoint.load(folder).code.parameters())


def test_cut_weights_are_refused(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder)


def test_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors")
    del tensors["decoder"]
    save_file(tensors, folder / "weights.safetensors")
    assert "decoder" in refused(folder)


def test_config_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")
    refused(folder)


def test_unknown_configuration_key_is_named(folder: Path) -> None:
    edit_config(folder, "memory", windw_tokens=64)
    assert refused(folder).endswith("unknown configuration key 'windw_tokens'")


@pytest.mark.parametrize("value", ["many", None, [1]])
def test_configuration_value_of_a_wrong_type_is_refused(folder: Path, value: Any) -> None:
    edit_config(folder, "memory", window_tokens=value)
    refused(folder)


def test_code_of_another_width_than_the_configuration_is_refused(folder: Path) -> None:
    edit_config(folder, "memory", code_width=40)
    refused(folder)


def test_bits_that_differ_from_the_configuration_are_refused(folder: Path) -> None:
    edit_config(folder, "memory", bits_per_token=184)
    assert "192 bits" in refused(folder)


def test_prefix_of_another_width_is_refused(folder: Path) -> None:
    edit_weights(folder, reading_prefix=torch.zeros(8, 10))
    assert "reading_prefix" in refused(folder)


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checkpoint_folder(str(tmp_path))


def test_checkpoint_of_another_llm_is_refused(tiny_folders: Any, tmp_path: Path) -> None:
    other = Backbone.load(tiny_folders.llm, torch.device("cpu"), torch.float32)
    other.model.model.norm.weight.data[0] += 1.0
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"was trained for another LLM \(weights [0-9a-f]{12}\) than .*other"):
        CMT.load(
            str(tmp_path / "other"), str(tiny_folders.checkpoint), str(tiny_folders.retriever), tmp_path, device="cpu"
        )


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_says_who_may_read_a_checkpoint(
    tiny_checkpoint: Checkpoint, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        tiny_checkpoint.save(tmp_path / "saved")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()} == {mode}


def test_model_id_names_the_weights_the_llm_and_the_retriever(folder: Path) -> None:
    before = Checkpoint.model_id(folder, "llm", "retriever")
    assert before == Checkpoint.model_id(folder, "llm", "retriever")
    assert (
        len({before, Checkpoint.model_id(folder, "llm2", "retriever"), Checkpoint.model_id(folder, "llm", "r2")}) == 3
    )
    edit_weights(folder, reading_prefix=torch.zeros(8, 192, dtype=torch.float16))
    assert Checkpoint.model_id(folder, "llm", "retriever") != before


def test_loaded_method_carries_the_checkpoints_model_id(tiny_cmt: CMT, tiny_folders: Any, folder: Path) -> None:
    assert tiny_cmt.model_id == tiny_folders.load_cmt().model_id
    edit_weights(folder, reading_prefix=torch.zeros(8, 192, dtype=torch.float16))
    changed = CMT.load(
        str(tiny_folders.llm), str(folder), str(tiny_folders.retriever), tiny_folders.cache, device="cpu"
    )
    assert changed.model_id != tiny_cmt.model_id


@pytest.mark.parametrize(
    "values",
    [
        {"method": "magic"},
        {"window_tokens": 8},
        {"prefix_tokens": 0},
        {"bits_per_token": 12},
        {"bits_per_token": 0},
        {"bits_per_token": -8},
        {"code_width": 16, "bits_per_token": 136},
        {"top_k": 0},
        {"format_version": 2},
    ],
)
def test_configuration_that_cannot_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MemoryConfig(**values)


def test_configuration_survives_its_plain_form() -> None:
    config = MemoryConfig(top_k=3, window_tokens=128)
    assert MemoryConfig.from_dict(config.to_dict()) == config
