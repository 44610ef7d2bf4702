"""Training: it learns, it repeats, it goes on exactly where it was stopped, and it leaves the LLM alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.data.training_mix import OPEN_SOURCES
from cmt_core.errors import ConfigError
from cmt_core.llm.backbone import Backbone
from cmt_core.memory.blocks import TokenBlocks
from cmt_core.memory.entropy_codes import EntropyCodes
from cmt_core.model import CMT
from cmt_core.retrieval.retriever import Retriever
from cmt_core.training.batches import Batch, TrainingWindow, collate
from cmt_core.training.feeds import WindowFeed
from cmt_core.training.loop import LoopConfig, run_stage
from cmt_core.training.recipe import Recipe, RecipeConfig
from cmt_core.training.stages import CodeStage, PrefixStage

LANDS = ("Norland", "Sudland", "the island", "Varde", "Holm", "the coast", "the river", "the club")
CITIES = ("Varde", "Holm", "storm", "bridge", "goals", "bread", "milk", "trade")
Stage = PrefixStage | CodeStage


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


@pytest.fixture(scope="module")
def batch_of(windows: list[TrainingWindow]) -> Callable[[int, random.Random], Batch]:
    """All windows at every step, with contexts of 1 and 2 documents by turns."""
    return lambda step, rng: collate([windows[:4], windows[4:]], 1 + step % 2, 0, rng)


@pytest.fixture
def new_stage(
    tiny_backbone: Backbone, tiny_checkpoint: Checkpoint
) -> Callable[[str], tuple[Stage, list[dict[str, Any]]]]:
    """A stage at its start, with its parameter groups; both stages of one name start alike."""

    def make(name: str) -> tuple[Stage, list[dict[str, Any]]]:
        start = tiny_checkpoint.encoding_prefix
        if name == "prefix":
            prefix = PrefixStage(tiny_backbone, start, 64)
            return prefix, prefix.parameter_groups(0.05)
        code = CodeStage(tiny_backbone, copy.deepcopy(tiny_checkpoint.code), tiny_checkpoint.rounding, start, 64)
        return code, code.parameter_groups(0.02, 1e-3)

    return make


def train(
    stage: Stage, groups: list[dict[str, Any]], batch_of: Any, folder: Path, steps: int, stop_at: int | None = None
) -> tuple[bool, list[float]]:
    """Whether it got to the end, and every step's loss."""
    losses: list[float] = []

    def report(step: int, figures: dict[str, float]) -> None:
        losses.append(figures["loss"])
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    config = LoopConfig(steps, warmup_steps=3, save_every_steps=1000)
    return run_stage(stage, groups, batch_of, config, folder, report), losses


@pytest.mark.parametrize(("name", "at_most"), [("prefix", 0.75), ("code", 0.9)])
def test_training_lowers_the_loss_and_leaves_the_llm_alone(
    name: str, at_most: float, tiny_backbone: Backbone, new_stage: Any, batch_of: Any, tmp_path: Path
) -> None:
    before = tiny_backbone.fingerprint()
    stage, groups = new_stage(name)
    done, losses = train(stage, groups, batch_of, tmp_path, steps=30)
    assert done
    assert sum(losses[-4:]) < at_most * sum(losses[:4])
    assert tiny_backbone.fingerprint() == before
    assert all(p.grad is None and not p.requires_grad for p in tiny_backbone.model.parameters())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == list(range(30))


def test_code_stage_trains_the_code_and_the_reading_prefix_only(
    new_stage: Any, batch_of: Any, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    stage, groups = new_stage("code")
    before = copy.deepcopy(stage.state_dict())
    train(stage, groups, batch_of, tmp_path, steps=2)
    changed = {name for name, tensor in stage.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"reading_prefix", "code.encoder", "code.decoder", "code.bias"}


@pytest.mark.parametrize("name", ["prefix", "code"])
def test_stopped_run_goes_on_to_the_very_parameters_of_an_unbroken_one(
    name: str, new_stage: Any, batch_of: Any, tmp_path: Path
) -> None:
    whole, groups = new_stage(name)
    done, losses = train(whole, groups, batch_of, tmp_path / "whole", steps=8)
    assert done
    first, groups = new_stage(name)
    done, before = train(first, groups, batch_of, tmp_path / "broken", steps=8, stop_at=2)
    assert not done
    second, groups = new_stage(name)
    done, after = train(second, groups, batch_of, tmp_path / "broken", steps=8)
    assert done
    assert before + after == losses
    for key, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], tensor), key


def test_finished_run_is_not_trained_again(new_stage: Any, batch_of: Any, tmp_path: Path) -> None:
    stage, groups = new_stage("prefix")
    train(stage, groups, batch_of, tmp_path, steps=3)
    again, groups = new_stage("prefix")
    assert train(again, groups, batch_of, tmp_path, steps=3) == (True, [])
    assert torch.equal(again.prefix, stage.prefix)


def test_signal_handlers_are_given_back(new_stage: Any, batch_of: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stage, groups = new_stage("prefix")
    train(stage, groups, batch_of, tmp_path, steps=3, stop_at=0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


ENDLESS = """
import sys, time, pathlib, torch
from cmt_core.training.loop import LoopConfig, run_stage

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def loss(self, batch):
        time.sleep(0.05)
        return (self.weight**2).sum(), {}

stage = Slow()
groups = [{"params": [stage.weight], "lr": 0.1}]
config = LoopConfig(10_000, save_every_steps=10_000)
done = run_stage(stage, groups, lambda *_: None, config, pathlib.Path(sys.argv[1]), lambda step, _: print(step, flush=True))
print("finished" if done else "stopped")
"""


def test_sigterm_ends_a_process_with_its_state_saved(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    *steps, last = rest.split()
    assert (process.returncode, last) == (0, "stopped")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == len(steps) + 1
    assert (state["stage"]["weight"] < 1).all()


def write_questions(path: Path) -> Path:
    """A question file of an open source, in the shape that `read_qa` reads."""
    source = next(iter(OPEN_SOURCES))
    with path.open("w", encoding="utf-8") as file:
        for n, (land, city) in enumerate(zip(LANDS, CITIES, strict=True)):
            row = {
                "doc_id": str(n),
                "title": "News",
                "text": f"It rained. The capital of {land} is {city}.",
                "source": source,
            }
            file.write(json.dumps(row | {"question": f"What is the capital of {land}?", "answers": [city]}) + "\n")
    return path


@pytest.mark.parametrize("aggregation", ["stack", "select"])
def test_recipe_goes_from_questions_to_a_checkpoint_that_answers(
    tiny_folders: Any, tiny_backbone: Backbone, tiny_memory: MemoryConfig, tmp_path: Path, aggregation: str
) -> None:
    """A second call on the finished folder gives the same parts without training."""
    memory = dataclasses.replace(tiny_memory, aggregation=aggregation)
    retriever = Retriever(tiny_folders.retriever, torch.device("cpu"))
    config = RecipeConfig(
        prefix_steps=2, code_steps=3, prefix_windows=2, groups_per_step=1, k_cycle=(1, 2), pca_windows=8
    )
    steps: list[str] = []

    def run() -> Checkpoint:
        recipe = Recipe(
            tiny_backbone, retriever, memory, config, tmp_path / "run", lambda stage, *_: steps.append(stage)
        )
        parts = recipe.run(write_questions(tmp_path / "qa.jsonl"))
        assert parts is not None
        fingerprint = tiny_backbone.fingerprint(torch.bfloat16)
        return Checkpoint(
            memory, tiny_backbone.shape, fingerprint, parts.encoding_prefix, parts.reading_prefix, parts.code,
            parts.rounding, {}, parts.select,
        )  # fmt: skip

    run().save(tmp_path / "one")
    assert steps == ["prefix"] * 2 + ["code"] * 3
    run().save(tmp_path / "two")
    assert len(steps) == 5
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    cmt = CMT.load(
        str(tiny_folders.llm), str(tmp_path / "one"), str(tiny_folders.retriever), tiny_folders.cache, device="cpu"
    )
    windows = [*cmt.windows("News", "The capital of Norland is Varde."), *cmt.windows("", "It rained.")]
    first, second = (made.code for made in cmt.compress(windows))
    question = "What is the capital of Norland?"
    alone, both = cmt.answer([question] * 2, [[first], [first, second]], max_new_tokens=3)
    assert alone.weights == [1.0]
    assert sum(both.weights) == pytest.approx(1.0)
    assert len(both.weights) == 2
    if memory.aggregation == "select":
        asked, codes = [question] * 2, [[first, second]] * 2
        cmt.config = dataclasses.replace(cmt.config, likelihood_weight=0.0)
        sure, torn = cmt.answer(asked, codes, scores=[[0.9, 0.2], [0.9, 0.9]], max_new_tokens=3)
        assert (sure.text, sure.weights) == (alone.text, [1.0, 0.0])
        assert min(torn.weights) > 0
        with pytest.raises(ValueError, match="scores for"):
            cmt.answer([question], [[first, second]], scores=[[0.9]], max_new_tokens=1)


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(
    tiny_folders: Any, tiny_backbone: Backbone, tiny_memory: MemoryConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    retriever = Retriever(tiny_folders.retriever, torch.device("cpu"))
    config = RecipeConfig(prefix_steps=0, code_steps=1, groups_per_step=1, k_cycle=(1,))
    questions = write_questions(tmp_path / "qa.jsonl")

    def run(config: RecipeConfig, memory: MemoryConfig = tiny_memory, questions: Path = questions) -> None:
        start = copy.deepcopy(tiny_checkpoint)
        recipe = Recipe(tiny_backbone, retriever, memory, config, tmp_path / "run", lambda *_: None, start)
        assert recipe.run(questions) is not None

    run(config)
    kept = (tmp_path / "run" / "run.json").read_bytes()
    run(config)
    for change, told in (
        ({"code_steps": 2}, "was begun with code_steps 1, now it is 2"),
        ({"seed": 5}, "was begun with seed 0, now it is 5"),
    ):
        with pytest.raises(ConfigError, match=told):
            run(dataclasses.replace(config, **change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="top_k 1, now it is 3: train as it was begun, or name another run folder"):
        run(config, dataclasses.replace(tiny_memory, top_k=3))
    with pytest.raises(ConfigError, match="questions"):
        run(config, questions=write_questions(tmp_path / "others.jsonl"))
    assert (tmp_path / "run" / "run.json").read_bytes() == kept


def test_training_goes_on_from_a_checkpoint(
    tiny_folders: Any, tiny_backbone: Backbone, tiny_memory: MemoryConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Without prefix steps the start's encoding prefix, bits and steps stay as they are, and its code is trained further."""
    retriever = Retriever(tiny_folders.retriever, torch.device("cpu"))
    start = copy.deepcopy(tiny_checkpoint)
    config = RecipeConfig(prefix_steps=0, code_steps=2, groups_per_step=1, k_cycle=(1,))
    recipe = Recipe(
        tiny_backbone, retriever, tiny_memory, config, tmp_path / "run", lambda *_: None, copy.deepcopy(start)
    )
    parts = recipe.run(write_questions(tmp_path / "qa.jsonl"))
    assert parts is not None
    assert torch.equal(parts.encoding_prefix, start.encoding_prefix)
    assert torch.equal(parts.rounding.quantiser.steps, start.rounding.quantiser.steps)
    moved = (parts.code.decoder.detach() - start.code.decoder).abs().max()
    assert 0 < float(moved) < 1e-3


@pytest.mark.parametrize("code_start", ["start", "gradient", "variance"])
def test_another_size_gets_a_code_of_its_own_behind_the_starts_prefix(
    code_start: str,
    tiny_folders: Any,
    tiny_backbone: Backbone,
    tiny_memory: MemoryConfig,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    memory = dataclasses.replace(tiny_memory, code_width=12, bits_per_token=40)
    config = RecipeConfig(prefix_steps=0, code_steps=1, groups_per_step=1, k_cycle=(1,), code_start=code_start)
    run, begun = tmp_path / "run", copy.deepcopy(tiny_checkpoint)
    retriever = Retriever(tiny_folders.retriever, torch.device("cpu"))
    parts = Recipe(tiny_backbone, retriever, memory, config, run, lambda *_: None, begun).run(
        write_questions(tmp_path / "qa.jsonl")
    )
    assert parts is not None
    assert parts.code is not None
    assert parts.rounding is not None
    assert parts.code.encoder.shape == (tiny_backbone.shape.width, 12)
    assert int(parts.rounding.quantiser.bits.sum()) == 40
    assert torch.equal(parts.encoding_prefix, tiny_checkpoint.encoding_prefix)
    scales = parts.code.scale.view(tiny_backbone.shape.layers, 2, -1)
    alike = bool((scales == scales[..., :1]).all())
    assert alike == (code_start == "variance")  # the gradient tells the numbers of a layer apart


def test_a_step_asks_so_many_questions_of_a_window_and_others_the_next_time() -> None:
    questions = tuple(((10 + number, 5), (6, 7)) for number in range(9))
    feed = WindowFeed([TrainingWindow("text", (1, 2, 3), questions)], 1, 0, 0, torch.device("cpu"), 2)
    asked = [feed(number, random.Random(number)).questions for number in range(8)]
    assert {int(one.segment.max()) for one in asked} == {1}
    assert len({tuple(one.ids[0].tolist()) for one in asked}) > 1
    whole = WindowFeed([TrainingWindow("text", (1, 2, 3), questions)], 1, 0, 0, torch.device("cpu"))
    assert int(whole(0, random.Random(0)).questions.segment.max()) == 8


def test_a_code_begins_where_it_is_told_whatever_the_start_has(
    tiny_folders: Any, tiny_backbone: Backbone, tiny_memory: MemoryConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    retriever, silent = Retriever(tiny_folders.retriever, torch.device("cpu")), lambda *_: None
    questions = write_questions(tmp_path / "qa.jsonl")
    found = {}
    for kind in ("start", "gradient"):
        config = RecipeConfig(prefix_steps=0, code_steps=1, groups_per_step=1, k_cycle=(1,), code_start=kind)
        start = copy.deepcopy(tiny_checkpoint)
        found[kind] = Recipe(tiny_backbone, retriever, tiny_memory, config, tmp_path / kind, silent, start).run(
            questions
        )
    was = tiny_checkpoint.code.encoder.detach()
    moved = {kind: float((parts.code.encoder.detach() - was).abs().max()) for kind, parts in found.items()}
    assert moved["start"] < 1e-3 < moved["gradient"]
    with pytest.raises(ConfigError, match="code_start is one of start, gradient, variance, not 'pca'"):
        Recipe(tiny_backbone, retriever, tiny_memory, RecipeConfig(code_start="pca"), tmp_path / "x", silent)


@pytest.mark.parametrize("code_storage", ["packed", "entropy"])
def test_code_stage_restores_rows_as_a_stored_memory_does(
    code_storage: str, tiny_checkpoint: Checkpoint, tiny_backbone: Backbone
) -> None:
    """What training sees of a document is what the bank's bytes give back, however many padded columns stand behind it."""
    seed = torch.Generator().manual_seed(0)
    code, rounding = tiny_checkpoint.code, tiny_checkpoint.rounding
    if code_storage == "entropy":
        blocks, sigma = TokenBlocks.fit([torch.randn(40, 48, generator=seed)], 4)
        rounding = EntropyCodes.fit(blocks, sigma, 96)
    stage = CodeStage(tiny_backbone, code, rounding, tiny_checkpoint.encoding_prefix, 64)
    x = torch.randn(2, 7, tiny_backbone.shape.width, generator=seed)
    mask = (torch.arange(7) < torch.tensor([[5], [7]])).long()
    with torch.no_grad():
        seen = stage.restore(x, mask)[mask.bool()]
        alone = [
            rounding.pack(code.encode(x[row : row + 1, :length]), [length])[0] for row, length in enumerate((5, 7))
        ]
        stored = code.decode(rounding.unpack(alone, [5, 7]), torch.float32)
    torch.testing.assert_close(seen, stored, atol=1e-4, rtol=1e-4)
