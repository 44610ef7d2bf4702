"""An encoder is used as its own files say: pooling, dense layers, prompts, length; what can't be read is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from cmt_core.errors import CoreError, ModelSourceError, UnsupportedModelError
from cmt_core.model import retriever_fingerprint
from cmt_core.retrieval.retriever import Retriever
from cmt_core.retrieval.sentence_layout import PLAIN, pooled, read_layout

TEXTS = ["The mayor opened the bridge.", "A storm."]
CPU = torch.device("cpu")


@pytest.fixture
def encoder(tiny_retriever_folder: Path, tmp_path: Path) -> Path:
    """The tiny encoder in a folder that a test may write to."""
    return Path(shutil.copytree(tiny_retriever_folder, tmp_path / "encoder"))


def laid_out(folder: Path, *parts: tuple[str, dict[str, Any]], about: dict[str, Any] | None = None) -> Path:
    """Writes sentence-transformers' files: (kind, its configuration) of each part behind the transformer."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, described) in enumerate(parts, 1):
        path = folder / f"{number}_{kind}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(described), encoding="utf-8")
        modules.append({"idx": number, "name": str(number), "path": path.name, "type": f"a.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about or {}), encoding="utf-8")
    return folder


def hidden_of(folder: Path, text: str) -> torch.Tensor:
    """The transformer's own last hidden states (T, D) of one text."""
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    hidden: torch.Tensor = AutoModel.from_pretrained(folder)(input_ids=ids).last_hidden_state[0].detach()
    return hidden


def same_direction(key: Any, vector: torch.Tensor) -> bool:
    unit = torch.nn.functional.normalize(vector, dim=-1).numpy()
    return bool(np.allclose(np.asarray(key, dtype=np.float32), unit, atol=0.02))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("pooling_mode_cls_token", lambda hidden: hidden[0]),
        ("pooling_mode_mean_tokens", lambda hidden: hidden.mean(dim=0)),
        ("pooling_mode_max_tokens", lambda hidden: hidden.amax(dim=0)),
        ("pooling_mode_lasttoken", lambda hidden: hidden[-1]),
    ],
)
def test_key_is_pooled_as_the_files_say_whatever_stands_beside_it(encoder: Path, mode: str, expected: Any) -> None:
    laid_out(encoder, ("Pooling", {mode: True}), ("Normalize", {}))
    keys = Retriever(encoder, CPU).document_keys(TEXTS).vectors
    for key, text in zip(keys, TEXTS, strict=True):
        assert same_direction(key, expected(hidden_of(encoder, text)))


def test_weighted_and_rooted_means_and_several_poolings() -> None:
    hidden, mask = torch.arange(12.0).view(1, 4, 3), torch.tensor([[1, 1, 0, 0]])
    rows = hidden[0, :2]
    assert torch.allclose(pooled(hidden, mask, ("mean over root",))[0], rows.sum(0) / 2**0.5)
    assert torch.allclose(pooled(hidden, mask, ("weighted mean",))[0], (rows[0] + 2 * rows[1]) / 3)
    assert pooled(hidden, mask, ("first", "max")).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_questions_and_documents_get_their_own_prompts(encoder: Path) -> None:
    plain = Retriever(encoder, CPU)
    laid_out(encoder, ("Pooling", {"pooling_mode_mean_tokens": True}), about={"prompts": {"query": "Who: "}})
    prompted = Retriever(encoder, CPU)
    assert np.array_equal(prompted.document_keys(TEXTS).vectors, plain.document_keys(TEXTS).vectors)
    looked_for = prompted.query_keys(TEXTS).vectors
    assert np.array_equal(looked_for, plain.document_keys([f"Who: {text}" for text in TEXTS]).vectors)
    assert not np.array_equal(looked_for, plain.query_keys(TEXTS).vectors)


def test_dense_layers_and_a_cut_width_follow_the_pooling(encoder: Path) -> None:
    activation = "torch.nn.modules.activation.Tanh"
    laid_out(
        encoder,
        ("Pooling", {"pooling_mode_mean_tokens": True}),
        ("Dense", {"in_features": 32, "out_features": 12, "activation_function": activation}),
        about={"truncate_dim": 8},
    )
    matrix = torch.randn(12, 32, generator=torch.Generator().manual_seed(3))
    save_file({"linear.weight": matrix, "linear.bias": torch.ones(12)}, encoder / "2_Dense" / "model.safetensors")
    made = Retriever(encoder, CPU)
    assert made.d_key == 8
    (key,) = made.document_keys(TEXTS[:1]).vectors
    mean = hidden_of(encoder, TEXTS[0]).mean(dim=0)
    assert same_direction(key, torch.tanh(matrix @ mean + 1)[:8])


def test_another_layout_is_another_model_id_and_a_plain_one_keeps_its_own(encoder: Path) -> None:
    plain = retriever_fingerprint(encoder)
    assert read_layout(encoder) == PLAIN
    laid_out(encoder, ("Pooling", {"pooling_mode_mean_tokens": True}), ("Normalize", {}))
    assert retriever_fingerprint(encoder) == plain  # MiniLM's own files say what was done without them
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    cls = retriever_fingerprint(encoder)
    (encoder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "Who: "}}', encoding="utf-8")
    assert len({plain, cls, retriever_fingerprint(encoder)}) == 3


@pytest.mark.parametrize(
    ("parts", "about", "error", "why"),
    [
        ([("WordWeights", {})], {}, UnsupportedModelError, "a part 'WordWeights' that can't be read here"),
        ([("Pooling", {})], {}, UnsupportedModelError, "names no pooling"),
        ([], {"similarity_fn_name": "dot"}, UnsupportedModelError, "compares by dot"),
        ([("Dense", {})], {}, ModelSourceError, "1_Dense can't be loaded"),
    ],
)
def test_what_can_not_be_read_is_one_line(
    encoder: Path, parts: list[Any], about: dict[str, Any], error: type[CoreError], why: str
) -> None:
    laid_out(encoder, *parts, about=about)
    with pytest.raises(error, match=why) as caught:
        Retriever(encoder, CPU)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line(encoder: Path) -> None:
    (encoder / "modules.json").write_text("[", encoding="utf-8")
    with pytest.raises(ModelSourceError, match=r"modules.json of the encoder can't be read"):
        Retriever(encoder, CPU)
