"""`auto` finds the shipped checkpoint by the LLM's weights, fits one for other weights once, and never mixes the two up."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmt_core.checkpoint import Checkpoint
from cmt_core.errors import CheckpointError, UnsupportedModelError
from cmt_core.fitting import auto
from cmt_core.fitting.auto import auto_checkpoint
from cmt_core.fitting.fit_config import FitConfig
from cmt_core.fitting.known import known_checkpoint
from cmt_core.llm.backbone import Backbone
from cmt_core.model import CMT
from cmt_core.retrieval.retriever import Retriever
from tests.unit.conftest import TinyFolders

SIZES = FitConfig(token_bytes=24, windows=24, questions=4, held_out=4, window_tokens=64)
Load = Callable[..., CMT]


@pytest.fixture
def other_llm(tiny_llm_folder: Path, tmp_path: Path) -> Path:
    """The tiny LLM with one weight changed."""
    folder = tmp_path / "other-llm"
    shutil.copytree(tiny_llm_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def load(tiny_folders: TinyFolders, tmp_path: Path) -> Load:
    """Loads an LLM with `auto`, in a cache of the test's own; `lines` gets what is reported."""

    def made(llm: Path, lines: list[str] | None = None, **more: Any) -> CMT:
        report = (lambda line: None) if lines is None else lines.append
        options = {"checkpoint": "auto", "fit": SIZES, "report": report} | more
        return CMT.load(
            str(llm), retriever=str(tiny_folders.retriever), cache_dir=tmp_path / "cache", device="cpu", **options
        )

    return made


def test_the_shipped_checkpoint_is_taken_for_its_own_weights(
    load: Load, tiny_folders: TinyFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "SHIPPED", tiny_folders.checkpoint)
    lines: list[str] = []
    model = load(tiny_folders.llm, lines)
    assert (model.config.reading, lines) == ("prefix", [])
    assert model.model_id == load(tiny_folders.llm, checkpoint=str(tiny_folders.checkpoint)).model_id


def test_other_weights_get_a_fit_that_is_kept(
    load: Load, tiny_folders: TinyFolders, other_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "SHIPPED", tiny_folders.checkpoint)
    lines, again = [], []
    first = load(other_llm, lines)
    assert first.config.reading == "chat"
    assert lines[0].startswith(f"fitting a memory checkpoint to {other_llm}, once: it is kept in {tmp_path / 'cache'}")
    second = load(other_llm, again)
    assert again == []
    assert second.model_id == first.model_id
    cache = tmp_path / "cache"
    (folder,) = [path for path in (cache / "fitted").iterdir() if (path / "config.json").exists()]
    assert known_checkpoint(cache, other_llm, tiny_folders.retriever, SIZES) == folder
    assert Checkpoint.load(folder).llm_fingerprint == first.backbone.fingerprint(torch.bfloat16)
    assert "fitted without training" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_another_size_or_template_is_another_fit(load: Load, other_llm: Path, tmp_path: Path) -> None:
    ids = {load(other_llm).model_id, load(other_llm, fit=FitConfig(32, 24, 4, 4, 64)).model_id}
    template = other_llm / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("\n{{", " {{"), encoding="utf-8")
    ids.add(load(other_llm).model_id)
    assert len(ids) == 3


def test_several_that_start_at_once_share_one_fit(tiny_folders: TinyFolders, other_llm: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    found: list[Path] = []
    device = torch.device("cpu")
    encoder = Retriever(tiny_folders.retriever, device)
    backbones = [Backbone.load(other_llm, device) for _ in range(3)]  # in their own processes, but for the test

    def start(backbone: Backbone) -> None:
        names = {"llm": "other", "retriever_name": "tiny", "config": SIZES, "report": lines.append}
        found.append(auto_checkpoint(backbone, "f", encoder, "e", tmp_path, **names))

    threads = [threading.Thread(target=start, args=(backbone,)) for backbone in backbones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len([line for line in lines if line.startswith("fitting ")]) == 1


def test_llms_can_be_loaded_by_several_threads_at_once(other_llm: Path) -> None:
    """Loading sets PyTorch's number type for the whole process while it lasts."""
    loaded: list[Backbone] = []
    type_before = torch.get_default_dtype()

    def load() -> None:
        loaded.append(Backbone.load(other_llm, torch.device("cpu"), torch.bfloat16))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({backbone.fingerprint() for backbone in loaded}) == 1
    assert len(loaded) == 4
    assert torch.get_default_dtype() == type_before


def test_a_named_checkpoint_of_other_weights_is_refused_with_the_way_out(
    load: Load, tiny_folders: TinyFolders, other_llm: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"was trained for another LLM .* checkpoint auto finds or fits one"
    ) as caught:
        load(other_llm, checkpoint=str(tiny_folders.checkpoint))
    assert "\n" not in str(caught.value)


def test_a_fit_that_fails_leaves_nothing_and_the_next_one_works(load: Load, other_llm: Path, tmp_path: Path) -> None:
    template = other_llm / "chat_template.jinja"
    kept = template.read_text(encoding="utf-8")
    template.unlink()
    config = other_llm / "tokenizer_config.json"
    described = json.loads(config.read_text(encoding="utf-8"))
    described.pop("chat_template", None)
    config.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="no chat template: take its instruct version"):
        load(other_llm)
    assert not [path for path in (tmp_path / "cache" / "fitted").iterdir() if path.is_dir()]
    template.write_text(kept, encoding="utf-8")
    assert load(other_llm).config.reading == "chat"


def test_a_fitted_model_answers_in_a_running_batch_past_newlines_until_its_end(load: Load, other_llm: Path) -> None:
    from cmt_core.generation.query import Query

    model = load(other_llm)
    memory = model.compress(model.windows("", "The mayor opened the new bridge over the river on Monday morning."))[0]
    batch = model.answer_batch()
    newline = model.tokens.ids("\n")[0]
    query = Query("Who opened it?", memories=[memory.code], scores=[0.9], instructions="Be short.")
    (started,) = batch.join([query])
    tokens = list(started.tokens)
    while tokens[-1] is not None and len(tokens) < 24:
        tokens += batch.step()[started.row]
    asked = model.ask(["Who opened it?"], [[memory.code]], [[0.9]], "Be short.")
    alone = model.write(asked, 24)[0]
    assert model.tokens.text([token for token in tokens if token is not None]).strip() == alone.text
    assert newline not in model.prompting.stop_ids
