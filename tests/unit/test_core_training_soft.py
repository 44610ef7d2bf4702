"""Training of the paper's parts: it learns, repeats, goes on exactly, and ends in a checkpoint that serves."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.data.plain_text import read_texts
from cmt_core.errors import DataError
from cmt_core.llm.backbone import Backbone
from cmt_core.memory.soft.soft_memory import SoftMemory
from cmt_core.model import CMT
from cmt_core.training.batches import Batch, TrainingWindow, collate
from cmt_core.training.command import train_checkpoint
from cmt_core.training.loop import LoopConfig, run_stage
from cmt_core.training.recipe import Recipe, RecipeConfig
from cmt_core.training.soft_stage import SoftStage
from cmt_core.training.stages import CodeStage
from cmt_core.training.text_windows import text_windows
from tests.unit.test_core_training import CITIES, LANDS, write_questions

SOFT: dict[str, Any] = {
    "method": "soft_tokens", "alignment": "low_rank", "memory_width": 64, "memory_vectors": 6, "alignment_rank": 4,
    "window_tokens": 64, "prefix_tokens": 8, "compressor_blocks": 1, "context_vectors": 5,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "stack": {"alignment": "linear", "soft_start": "learned"},
    "single": {"aggregation": "single_context", "matching": "cosine", "objective": "contrast"},
    "infonce": {"matching": "infonce", "objective": "mix", "objective_weight": 0.8},
}


@pytest.fixture(scope="module")
def windows(tiny_backbone: Backbone) -> list[TrainingWindow]:
    """Eight short documents with one question each."""
    tokenizer = tiny_backbone.tokenizer

    def window(land: str, city: str) -> TrainingWindow:
        reading = f"The capital of {land} is {city}."
        question, answer = tokenizer(f"\n\nQuestion: {land}?\nAnswer:")["input_ids"], tokenizer(f" {city}")["input_ids"]
        asked = (tuple(question), (*answer, tokenizer.eos_token_id))
        return TrainingWindow(reading, tuple(tokenizer(reading)["input_ids"]), (asked,))

    return [window(land, city) for land, city in zip(LANDS, CITIES, strict=True)]


def new_stage(backbone: Backbone, tiny: Checkpoint, variant: str) -> SoftStage:
    torch.manual_seed(5)
    soft = SoftMemory(MemoryConfig(**(SOFT | VARIANTS[variant])), backbone.shape)
    return SoftStage(backbone, soft, tiny.encoding_prefix)


def train(
    stage: SoftStage, windows: list[TrainingWindow], folder: Path, steps: int, stop_at: int | None = None
) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []

    def feed(number: int, rng: random.Random) -> Batch:
        return collate([windows[:4], windows[4:]], 1 + number % 2, 0, rng)

    def report(step: int, figures: dict[str, float]) -> None:
        rows.append(dict(figures))
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    config = LoopConfig(steps, warmup_steps=2, save_every_steps=1000)
    run_stage(stage, stage.parameter_groups(0.02, 5e-3, 5e-3), feed, config, folder, report)
    return rows


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_soft_stage_learns_and_leaves_the_llm_alone(
    variant: str, tiny_backbone: Backbone, tiny_checkpoint: Checkpoint, windows: list[TrainingWindow], tmp_path: Path
) -> None:
    before = tiny_backbone.fingerprint()
    stage = new_stage(tiny_backbone, tiny_checkpoint, variant)
    first = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    rows = train(stage, windows, tmp_path, steps=24)
    answers = [row.get("answer_k1", row.get("answer_k2", 0.0)) for row in rows]
    assert sum(answers[-4:]) < 0.8 * sum(answers[:4])
    if stage.soft.matching is not None:
        assert rows[-1]["matching"] < rows[0]["matching"] - 0.1
    assert tiny_backbone.fingerprint() == before
    assert all(p.grad is None for p in tiny_backbone.model.parameters())
    still = {name for name, tensor in stage.state_dict().items() if torch.equal(tensor, first[name])}
    assert still == {"encoding_prefix"}
    assert all(row["tokens_per_s"] > 0 for row in rows)


@pytest.mark.parametrize("variant", ["single", "infonce"])
def test_stopped_soft_run_goes_on_to_the_very_parameters_of_an_unbroken_one(
    variant: str, tiny_backbone: Backbone, tiny_checkpoint: Checkpoint, windows: list[TrainingWindow], tmp_path: Path
) -> None:
    whole = new_stage(tiny_backbone, tiny_checkpoint, variant)
    losses = [row["loss"] for row in train(whole, windows, tmp_path / "whole", 6)]
    first = new_stage(tiny_backbone, tiny_checkpoint, variant)
    before = [row["loss"] for row in train(first, windows, tmp_path / "broken", 6, stop_at=2)]
    second = new_stage(tiny_backbone, tiny_checkpoint, variant)
    after = [row["loss"] for row in train(second, windows, tmp_path / "broken", 6)]
    assert before + after == losses
    for key, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], tensor), key


def test_training_reads_what_serving_reads(
    tiny_folders: Any, tiny_backbone: Backbone, tiny_checkpoint: Checkpoint, windows: list[TrainingWindow]
) -> None:
    """The context that the stage builds is the one that CMT builds from the packed memories, to float16."""
    from cmt_core.retrieval.retriever import Retriever
    from cmt_core.training.soft_stage import question_of
    from cmt_core.training.stages import teach

    stage = new_stage(tiny_backbone, tiny_checkpoint, "single")
    checkpoint = dataclasses.replace(
        tiny_checkpoint, config=stage.config, code=None, rounding=None, soft=stage.soft,
        reading_prefix=tiny_checkpoint.encoding_prefix,
    )  # fmt: skip
    cmt = CMT(tiny_backbone, checkpoint, Retriever(tiny_folders.retriever, torch.device("cpu")), "tiny")
    batch = collate([windows[:2]], 2, 0, random.Random(0))
    with torch.no_grad():
        taught = teach(tiny_backbone, stage.encoding_prefix, batch, 64, stage.soft.source_layer)
        memory = stage.soft.compress(tiny_backbone, batch.ids, batch.mask, taught.source, taught.last)
        asked, _ = question_of(tiny_backbone, stage.reading_prefix, batch, stage.soft.source_layer)
        trained = stage._context(memory[:2], asked[[0, 0]], batch)
    parts = [cmt.windows("", window.reading)[0] for window in windows[:2]]
    codes = [made.code for made in cmt.compress(parts)]
    order = batch.context[0].tolist()
    served = cmt.context([LANDS[0] + "?"], [[codes[i] for i in order]]).context
    for mine, theirs in zip(trained.cache.layers, served.cache.layers, strict=True):
        torch.testing.assert_close(mine.keys[:1], theirs.keys, atol=0.05, rtol=0.05)
        torch.testing.assert_close(mine.values[:1], theirs.values, atol=0.05, rtol=0.05)


RECIPE = RecipeConfig(
    prefix_steps=2, code_steps=3, text_steps=2, prefix_windows=2, groups_per_step=1, group_windows=2, k_cycle=(1, 2),
    pca_windows=4, evaluate_every_steps=2, held_out_documents=2, accumulate=2,
)  # fmt: skip
TEXT = "The storm is over. The ferry sails again on Monday. " * 8 + "Nobody was hurt. The mayor thanked all who helped."


def run_training(folders: Any, folder: Path, memory: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """A whole `cmt train` on tiny parts; every step's figures."""
    folder.mkdir(exist_ok=True)
    (folder / "texts.txt").write_text(TEXT, encoding="utf-8")
    rows: list[tuple[str, dict[str, float]]] = []
    small = {"window_tokens": 64, "prefix_tokens": 8, "code_width": 32, "bits_per_token": 128}
    done = train_checkpoint(
        RECIPE, write_questions(folder / "qa.jsonl"), folder / "run", folder / "out", llm=str(folders.llm),
        retriever=str(folders.retriever), cache_dir=folders.cache, device="cpu", aggregation=memory.pop("aggregation"),
        memory=small | memory, texts=folder / "texts.txt", report=lambda line: None,
        on_step=lambda stage, step, steps, figures: rows.append((stage, dict(figures))),
    )  # fmt: skip
    assert done
    return rows


@pytest.mark.parametrize("method", ["soft_tokens", "kv_code"])
def test_recipe_with_plain_text_first_repeats_and_serves(tiny_folders: Any, tmp_path: Path, method: str) -> None:
    """Same seed, same losses to the last bit; text, questions, held-out loss, plot and checkpoint are all there."""
    parts: dict[str, Any] = {"method": method, "aggregation": "select", "objective": "contrast"}
    if method == "soft_tokens":
        parts |= {"aggregation": "single_context", "alignment": "linear", "matching": "cosine", "memory_vectors": 4}
    first = run_training(tiny_folders, tmp_path / "one", dict(parts))
    again = run_training(tiny_folders, tmp_path / "two", dict(parts))
    assert [(stage, row["loss"]) for stage, row in first] == [(stage, row["loss"]) for stage, row in again]
    memory = "soft" if method == "soft_tokens" else "code"
    assert [stage for stage, _ in first] == ["prefix"] * 2 + ["text"] * 2 + [memory] * 3
    assert ["held_out" in row for stage, row in first] == [False, True, False, True, False, True, True]
    weights = [(tmp_path / name / "out" / "weights.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert (tmp_path / "one" / "run" / "losses.png").exists()
    cmt = CMT.load(
        str(tiny_folders.llm), str(tmp_path / "one" / "out"), str(tiny_folders.retriever), tiny_folders.cache,
        device="cpu",
    )  # fmt: skip
    codes = [made.code for made in cmt.compress([*cmt.windows("", "It rained."), *cmt.windows("", "Varde won.")])]
    (answer,) = cmt.answer(["Who won?"], [codes], max_new_tokens=3)
    assert sum(answer.weights) == pytest.approx(1.0)
    assert cmt.config.decoding_weight == 1.5


def test_documents_of_unknown_sources_are_trained_on_when_asked_for(
    tiny_backbone: Backbone, tiny_memory: MemoryConfig, tmp_path: Path
) -> None:
    squad = {"title": "Varde", "paragraphs": [{"context": "Varde is a town.", "qas": [
        {"question": "What is Varde?", "answers": [{"text": "a town", "answer_start": 9}]}]}]}  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": "1.1", "data": [squad]}), encoding="utf-8")

    def windows(sources: str) -> list[TrainingWindow]:
        config = RecipeConfig(sources=sources)
        recipe = Recipe(tiny_backbone, None, tiny_memory, config, tmp_path / "run", lambda *_: None)  # type: ignore[arg-type]
        return recipe._windows(path, None)

    assert [window.reading for window in windows("all")] == ["Varde\nVarde is a town."]
    with pytest.raises(DataError, match="has no documents of the sources known here"):
        windows("open")


def test_start_of_another_method_gives_its_prefix(
    tiny_folders: Any, tiny_backbone: Backbone, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from cmt_core.retrieval.retriever import Retriever

    config = RecipeConfig(prefix_steps=0, code_steps=1, groups_per_step=1, group_windows=2, k_cycle=(1,))
    retriever = Retriever(tiny_folders.retriever, torch.device("cpu"))
    recipe = Recipe(tiny_backbone, retriever, MemoryConfig(**SOFT), config, tmp_path, lambda *_: None, tiny_checkpoint)
    parts = recipe.run(write_questions(tmp_path / "qa.jsonl"))
    assert parts is not None
    assert torch.equal(parts.encoding_prefix, tiny_checkpoint.encoding_prefix)
    assert parts.soft is not None
    assert parts.code is None
    near = (parts.reading_prefix - tiny_checkpoint.encoding_prefix).abs().max()
    assert 0 < float(near) < 0.01


def test_code_stage_with_the_memory_aware_objective_trains_on_the_mix(
    tiny_backbone: Backbone, tiny_checkpoint: Checkpoint, windows: list[TrainingWindow]
) -> None:
    from cmt_core.generation.mixed_logits import memory_aware
    from cmt_core.training.objective import answer_loss
    from cmt_core.training.stages import answer_questions, read_alone, targets_of, teach

    batch = collate([windows[:4]], 1, 0, random.Random(0))
    tiny = tiny_checkpoint
    assert tiny.code is not None
    assert tiny.rounding is not None
    figures = {}
    for weight in (1.0, 1.5):
        stage = CodeStage(
            tiny_backbone, tiny.code, tiny.rounding, tiny.encoding_prefix, 64, memory_weight=weight
        )  # fmt: skip
        figures[weight] = stage.loss(batch)[1]
    with torch.no_grad():
        context, _ = stage._context(
            stage.restore(teach(tiny_backbone, tiny.encoding_prefix, batch, 64).exact, batch.mask), batch
        )
        _, logits = answer_questions(tiny_backbone, context, batch.questions)
        _, plain = read_alone(tiny_backbone, tiny.encoding_prefix, batch)
        mixed = answer_loss(memory_aware(logits, plain, 1.5), targets_of(batch))
    assert figures[1.5]["answer_k1"] == pytest.approx(mixed.item(), abs=1e-4)
    assert figures[1.5]["answer_k1"] != pytest.approx(figures[1.0]["answer_k1"], abs=1e-3)
    assert figures[1.5]["kl_k1"] == pytest.approx(figures[1.0]["kl_k1"], abs=1e-5)


def test_text_windows_repeat_their_own_text_and_go_on_with_what_they_do_not_hold(tiny_backbone: Backbone) -> None:
    tokenizer = tiny_backbone.tokenizer

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    sentences = [f"Item {n} of the list is number {n * n}." for n in range(12)]
    made = text_windows([" ".join(sentences)], encode, 0, 64)
    assert len(made) > 2
    for window in made:
        assert window.questions[0][1] == (*window.ids[:96], 0)
    assert [len(window.questions) for window in made] == [2] * (len(made) - 1) + [1]
    for window, following in pairwise(made):
        text = tokenizer.decode(window.questions[1][1][:-1]).strip()
        assert text in following.reading
        assert text not in window.reading
        assert text.split(".")[0] not in window.reading


def test_plain_texts_are_read_from_files_folders_and_rows(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Second.", encoding="utf-8")
    (tmp_path / "a.txt").write_text("First.", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "One."}\n\n{"text": "Two."}\n{"txt": 3}\n', encoding="utf-8")
    assert list(read_texts(tmp_path)) == ["First.", "Second."]
    rows = read_texts(tmp_path / "rows.jsonl")
    assert [next(rows), next(rows)] == ["One.", "Two."]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: not a JSON object with a text"):
        next(rows)
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "none.txt", tmp_path / "empty"):
        with pytest.raises(DataError, match=missing.name):
            list(read_texts(missing))
