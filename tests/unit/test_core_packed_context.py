"""What crosses the seam to an engine: packed contexts, and the keys and values that a vLLM worker makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.errors import CheckpointError, MemoryFormatError
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.folder import LLMFolder, folder_fingerprint
from cmt_core.memory.packed_context import PackedContext, Run, as_runs
from cmt_core.model import CMT
from cmt_core.vllm_engine.loading import ContextLoader
from cmt_core.vllm_engine.rotary import Rotary
from cmt_core.vllm_engine.versions import require_supported
from tests.unit.conftest import TinyFolders
from tests.unit.test_core_families import FAMILIES, random_model

CONTEXT = PackedContext("reading", 2, (b"one", b"two"), (Run(1, 3, 5, 2), Run(0, 0, 4, 4)), 12)


def test_context_comes_back_from_json_as_it_was() -> None:
    assert PackedContext.from_params(json.loads(json.dumps(CONTEXT.to_params()))) == CONTEXT
    assert (CONTEXT.columns, CONTEXT.positions()) == (8, [0, 1, 2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize(
    "change",
    [
        {"memories": ["/etc/passwd", "dHdv"]},
        {"memories": ["b25l"]},
        {"memories": [b"one", b"two"]},
        {"runs": [[1, 3, 5, 2], [0, 4, 4, 4]]},
        {"runs": [[1, 3, 5, 2], [0, -1, 4, 4]]},
        {"runs": [[1, 3, 5, 1], [0, 0, 4, 4]]},
        {"runs": [[1, 3, 5, 2], [0, 0, 4, 9]]},
        {"runs": [[1, 3, 5, 2], [2, 0, 4, 4]]},
        {"runs": [[1, 3, 5.0, 2], [0, 0, 4, 4]]},
        {"runs": [[1, 3, 5], [0, 0, 4, 4]]},
        {"runs": None},
        {"prefix": "other"},
        {"prefix": "none"},
        {"prefix_tokens": True},
        {"next_position": 1},
        {"file": "x"},
    ],
)
def test_context_that_can_not_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MemoryFormatError, match="a packed context can't be read"):
        PackedContext.from_params(CONTEXT.to_params() | change)


def test_salt_names_all_that_the_columns_hold() -> None:
    others = [
        replace(CONTEXT, memories=(b"one", b"twp")),
        replace(CONTEXT, memories=(b"onet", b"wo")),
        replace(CONTEXT, runs=(Run(1, 3, 5, 2), Run(0, 0, 4, 5))),
        replace(CONTEXT, next_position=13),
        replace(CONTEXT, prefix="encoding"),
    ]
    assert len({CONTEXT.salt, *(other.salt for other in others)}) == 6
    assert replace(CONTEXT).salt == CONTEXT.salt


def test_columns_become_the_fewest_runs() -> None:
    columns = [(0, 4, 2), (0, 5, 3), (0, 7, 4), (1, 8, 5), (1, 9, 6), (1, 10, 8)]
    assert as_runs(columns) == (Run(0, 4, 6, 2), Run(0, 7, 8, 4), Run(1, 8, 10, 5), Run(1, 10, 11, 8))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "rope"),
    [*((name, None) for name in FAMILIES), *(("Llama", rope) for rope in ("linear", "llama3", "yarn"))],
)
def test_keys_are_turned_as_the_llm_itself_turns_them(name: str, rope: str | None) -> None:
    more: dict[str, Any] = {}
    if rope is not None:
        scaled = {"rope_type": rope, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
        more["rope_parameters"] = scaled | (
            {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope == "llama3" else {}
        )
    backbone = Backbone(random_model(name, **more), None)
    shape = backbone.shape
    rows = torch.randn(9, shape.width, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([-20, -3, 0, 1, 2, 30, 31, 200, 201])
    theirs = backbone.cache(rows[None], positions[None])
    keys = rows.view(9, shape.layers, 2, shape.heads, shape.head_dim)[:, :, 0]
    rotary = Rotary(backbone.model.config, shape.layers, shape.head_dim, torch.device("cpu"))
    ours = rotary.turned(keys, positions)
    for layer, kept in enumerate(theirs.layers):
        torch.testing.assert_close(ours[:, layer], kept.keys[0].transpose(0, 1), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_worker_makes_the_columns_that_our_own_engine_places(exact_cmt: CMT, tiny_folders: TinyFolders) -> None:
    texts = ("The mayor opened the new bridge.", "A storm cancelled the ferry for three days.")
    memories = [memory.code for text in texts for memory in exact_cmt.compress(exact_cmt.windows("", text))]
    contexts = exact_cmt._contexts
    (chosen,) = contexts.chosen(["Who opened the bridge?"], [memories], None)
    context = chosen.context
    placed = contexts.placed([chosen]).context.cache
    loader = ContextLoader.of(
        tiny_folders.checkpoint, exact_cmt.backbone.model.config, torch.device("cpu"), torch.float32
    )
    shift = context.columns - context.next_position  # vLLM numbers the question from S
    rows = torch.cat([exact_cmt.reading_prefix, *exact_cmt.format.read(context.memories)])
    moved = exact_cmt.backbone.cache(rows[None], torch.tensor([context.positions()]) + shift)
    for first in (0, 5, context.columns - 1):
        for _ in range(2):  # the second time from what is kept
            columns = loader.columns(context, first)
            for layer, (own, there) in enumerate(zip(moved.layers, placed.layers, strict=True)):
                torch.testing.assert_close(
                    columns.keys[:, layer], own.keys[0].transpose(0, 1)[first:], atol=1e-5, rtol=1e-4
                )
                values = there.values[0].transpose(0, 1)[first : context.columns]
                torch.testing.assert_close(columns.values[:, layer], values, atol=1e-6, rtol=1e-5)


def test_what_a_worker_can_not_load_is_told(exact_cmt: CMT, tiny_folders: TinyFolders, tmp_path: Path) -> None:
    config, cpu = exact_cmt.backbone.model.config, torch.device("cpu")
    loader = ContextLoader.of(tiny_folders.checkpoint, config, cpu, torch.float32)
    (memory,) = exact_cmt.compress(exact_cmt.windows("", "A storm."))
    good = PackedContext("reading", 8, (memory.code,), (Run(0, 0, memory.n_tokens, 8),), 72)
    assert len(loader.columns(good).keys) == good.columns
    for bad in (
        replace(good, memories=(memory.code[:-1],)),
        replace(good, runs=(Run(0, 0, memory.n_tokens + 1, 8),)),
        replace(good, prefix_tokens=7),
    ):
        with pytest.raises(MemoryFormatError):
            loader.columns(bad)
    with pytest.raises(CheckpointError):
        ContextLoader.of(tmp_path, config, cpu, torch.float32)
    other = type(config)(**{**config.to_dict(), "num_hidden_layers": 2})
    with pytest.raises(ValueError, match="this LLM has"):
        ContextLoader.of(tiny_folders.checkpoint, other, cpu, torch.float32)


def test_folder_tells_the_fingerprint_of_its_llm_without_loading_it(
    tiny_llm_folder: Path, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert folder_fingerprint(tiny_llm_folder) == tiny_checkpoint.llm_fingerprint
    assert LLMFolder.load(tiny_llm_folder).longest == 2048
    for name in ("Gemma3", "Qwen3"):
        model = random_model(name)
        model.save_pretrained(tmp_path / name)
        assert folder_fingerprint(tmp_path / name) == Backbone(model, None).fingerprint(torch.bfloat16)


@pytest.mark.parametrize("version", ["0.29.0", "0.32.0", "0.32.1.dev4+g1234", "0.33.0"])
def test_known_versions_of_vllm_are_taken(version: str) -> None:
    require_supported(version)


@pytest.mark.parametrize("version", ["0.28.4", "0.34.0", "1.0.0", "dev"])
def test_other_versions_of_vllm_are_refused_in_one_line(version: str) -> None:
    with pytest.raises(RuntimeError, match=r"install one from 0\.29 to 0\.33"):
        require_supported(version)
