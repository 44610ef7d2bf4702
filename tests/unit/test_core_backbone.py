"""The frozen LLM's keys and values, read and placed again, act exactly as the text itself would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmt_core.errors import ModelSourceError, UnsupportedModelError
from cmt_core.llm.backbone import Backbone
from cmt_core.reading.alignment import place
from cmt_core.retrieval.retriever import Retriever
from cmt_core.training.batches import attend

CPU = torch.device("cpu")


def plain_logits(backbone: Backbone, ids: Tensor, positions: Tensor, attend_: Tensor) -> Tensor:
    """What transformers' own model gives for ids (1, N) at positions (1, N) under a mask (N, N)."""
    logits: Tensor = backbone.model(input_ids=ids, position_ids=positions, attention_mask=attend_[None, None]).logits
    return logits


def tokens(backbone: Backbone, seed: int, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, backbone.model.config.vocab_size, size, generator=generator)


def ask(backbone: Backbone, prefix: Tensor, documents: Tensor, mask: Tensor, question: Tensor, window: int) -> Tensor:
    """Logits (B, Q, V) of a question (B, Q) behind placed documents (B, k, T, X)."""
    context = place(backbone, prefix, documents, mask, window)
    positions = context.next_position[:, None] + torch.arange(question.shape[1])
    attention = attend(context.seen, torch.zeros_like(question))
    return backbone.logits(backbone.forward(question, positions, attention, context.cache))


def read_prefix(backbone: Backbone, ids: Tensor) -> Tensor:
    return backbone.read(ids, torch.ones_like(ids), torch.zeros(0, backbone.shape.width))[0]


@torch.no_grad()
@pytest.mark.parametrize(("p", "lengths", "T", "Q"), [(1, [1], 1, 1), (5, [20], 32, 7), (8, [32, 9, 17], 32, 12)])
def test_placed_document_gives_the_logits_of_the_plain_text(
    tiny_backbone: Backbone, p: int, lengths: list[int], T: int, Q: int
) -> None:
    B = len(lengths)
    prefix_ids, ids, question = (
        tokens(tiny_backbone, 0, 1, p),
        tokens(tiny_backbone, 1, B, T),
        tokens(tiny_backbone, 2, B, Q),
    )
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).long()
    prefix = read_prefix(tiny_backbone, prefix_ids)
    exact = tiny_backbone.read(ids, mask, prefix)
    got = ask(tiny_backbone, prefix, exact[:, None], mask[:, None], question, T)
    for row, n in enumerate(lengths):
        text = torch.cat([prefix_ids, ids[row : row + 1, :n], question[row : row + 1]], dim=1)
        positions = torch.cat([torch.arange(p + n), p + T + torch.arange(Q)])[None]
        expected = plain_logits(tiny_backbone, text, positions, torch.ones(p + n + Q, p + n + Q).tril().bool())
        torch.testing.assert_close(got[row], expected[0, -Q:], atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("slot", [0, 1, 3])
def test_document_in_a_slot_equals_the_plain_forward_at_those_positions(tiny_backbone: Backbone, slot: int) -> None:
    n, T, window, Q, k = 11, 13, 16, 5, 4  # the padded length T is not the room that a slot takes
    ids, question = tokens(tiny_backbone, 3, 1, n), tokens(tiny_backbone, 4, 1, Q)
    nothing = torch.zeros(0, tiny_backbone.shape.width)
    documents = torch.zeros(1, k, T, tiny_backbone.shape.width)
    mask = torch.zeros(1, k, T, dtype=torch.long)
    documents[0, slot, :n] = tiny_backbone.read(ids, torch.ones_like(ids), nothing)[0]
    mask[0, slot, :n] = 1
    got = ask(tiny_backbone, nothing, documents, mask, question, window)
    positions = torch.cat([slot * window + torch.arange(n), k * window + torch.arange(Q)])[None]
    text = torch.cat([ids, question], dim=1)
    expected = plain_logits(tiny_backbone, text, positions, torch.ones(n + Q, n + Q).tril().bool())
    torch.testing.assert_close(got[0], expected[0, -Q:], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_two_documents_read_apart_equal_the_plain_forward_where_they_cannot_see_each_other(
    tiny_backbone: Backbone,
) -> None:
    n, Q = 10, 6
    first, second, question = (tokens(tiny_backbone, seed, 1, size) for seed, size in ((5, n), (6, n), (7, Q)))
    nothing = torch.zeros(0, tiny_backbone.shape.width)
    both = torch.cat([first, second])
    exact = tiny_backbone.read(both, torch.ones_like(both), nothing)
    got = ask(tiny_backbone, nothing, exact[None], torch.ones(1, 2, n, dtype=torch.long), question, n)
    mask = torch.ones(2 * n + Q, 2 * n + Q).tril().bool()
    mask[n : 2 * n, :n] = False
    text, positions = torch.cat([first, second, question], dim=1), torch.arange(2 * n + Q)[None]
    expected = plain_logits(tiny_backbone, text, positions, mask)
    torch.testing.assert_close(got[0], expected[0, -Q:], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_and_neighbours_do_not_change_a_documents_rows(tiny_backbone: Backbone) -> None:
    prefix = read_prefix(tiny_backbone, tokens(tiny_backbone, 8, 1, 4))
    ids = tokens(tiny_backbone, 9, 3, 32)
    mask = (torch.arange(32) < torch.tensor([7, 32, 20])[:, None]).long()
    together = tiny_backbone.read(ids, mask, prefix)
    alone = tiny_backbone.read(ids[:1, :7], mask[:1, :7], prefix)
    torch.testing.assert_close(together[0, :7], alone[0], atol=1e-4, rtol=1e-4)


def test_kv_shape_counts_key_value_heads_not_query_heads(tiny_backbone: Backbone) -> None:
    shape = tiny_backbone.shape
    assert (shape.layers, shape.heads, shape.head_dim, shape.width) == (3, 2, 16, 3 * 2 * 2 * 16)


def test_loaded_llm_is_frozen(tiny_backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in tiny_backbone.model.parameters())
    assert not tiny_backbone.model.training


def test_fingerprint_depends_on_weights_but_not_on_the_loaded_type(
    tiny_llm_folder: Path, load_backbone: Callable[[], Backbone]
) -> None:
    exact, half = load_backbone(), Backbone.load(tiny_llm_folder, CPU, torch.bfloat16)
    assert exact.fingerprint(torch.bfloat16) == half.fingerprint(torch.bfloat16)
    assert exact.fingerprint() != half.fingerprint()
    before = exact.fingerprint(torch.bfloat16)
    exact.model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1.0
    assert exact.fingerprint(torch.bfloat16) != before


def test_unsupported_family_is_named(tmp_path: Path, tiny_llm_folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(tiny_llm_folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "m")
    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported: it is no decoder-only LLM with rotary"):
        Backbone.load(tmp_path / "m", CPU)


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}", encoding="utf-8")


def other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}), encoding="utf-8")


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    "damage", [cut_weights, drop_weights, break_json, empty_config, other_width, drop_tokenizer, break_tokenizer]
)
def test_broken_folder_is_a_one_line_error(tmp_path: Path, tiny_llm_folder: Path, damage: Any) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llm_folder, folder)
    damage(folder)
    with pytest.raises(ModelSourceError) as caught:
        Backbone.load(folder, CPU)
    assert str(caught.value).startswith(f"model folder {folder} can't be loaded: ")
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(": ")


@pytest.mark.parametrize("damage", [cut_weights, drop_weights, break_json, break_tokenizer])
def test_broken_retriever_is_a_one_line_error(tmp_path: Path, tiny_retriever_folder: Path, damage: Any) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_retriever_folder, folder)
    damage(folder)
    with pytest.raises(ModelSourceError) as caught:
        Retriever(folder, CPU)
    assert str(caught.value).startswith(f"retriever {folder} can't be loaded: ")
    assert "\n" not in str(caught.value)
