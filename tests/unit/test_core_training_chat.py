"""A fitted code trained further: the exact document teaches it, nothing else changes, a stopped run goes on, no labels."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.errors import ConfigError, DataError
from cmt_core.fitting.fit import fit
from cmt_core.fitting.fit_config import FitConfig
from cmt_core.fitting.reader import ChatReader
from cmt_core.llm.backbone import Backbone
from cmt_core.model import CMT
from cmt_core.retrieval.retriever import Retriever
from cmt_core.training.chat_recipe import ChatRecipe
from cmt_core.training.chat_windows import self_asked_windows
from cmt_core.training.command import train_checkpoint
from cmt_core.training.recipe_config import RecipeConfig

FIT = FitConfig(token_bytes=8, windows=16, questions=6, held_out=6, window_tokens=64)
STEPS = RecipeConfig(code_steps=24, group_windows=2, groups_per_step=2, chat_k_cycle=(1, 2), code_lr=2e-3)


@pytest.fixture(scope="module")
def texts(corpus: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [" ".join(corpus[(start + 3 * i) % len(corpus)] for i in range(4)) for start in range(24)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encoder(tiny_retriever_folder: Path) -> Retriever:
    return Retriever(tiny_retriever_folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def start(load_backbone: Callable[[], Backbone], encoder: Retriever, texts: Path, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("fit") / "fitted"
    fit(load_backbone(), encoder, FIT, texts=texts).checkpoint.save(folder)
    return folder


@pytest.fixture
def recipe(
    load_backbone: Callable[[], Backbone], encoder: Retriever, start: Path, tmp_path: Path
) -> Callable[..., ChatRecipe]:
    def make(
        config: RecipeConfig = STEPS, folder: str = "run", report: Any = lambda *told: None, **memory: Any
    ) -> ChatRecipe:
        first = Checkpoint.load(start)
        chosen = dataclasses.replace(first.config, **memory)
        return ChatRecipe(load_backbone(), encoder, chosen, config, tmp_path / folder, report, first)

    return make


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "code" / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_code_comes_nearer_to_the_exact_document_on_windows_that_it_did_not_see(
    recipe: Callable[..., ChatRecipe], texts: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(STEPS, code_steps=40, evaluate_every_steps=1, held_out_documents=4)
    made = recipe(config)
    before = made.backbone.fingerprint()
    parts = made.run(None, texts)
    assert parts is not None
    assert made.backbone.fingerprint() == before  # the LLM is what it was
    assert torch.equal(parts.encoding_prefix, made.start.encoding_prefix)
    assert torch.equal(parts.reading_prefix, made.start.reading_prefix)
    kl = [row.get("kl_k1", row.get("kl_k2", 0.0)) for row in log_of(tmp_path / "run")]
    assert sum(kl[-10:]) < 0.9 * sum(kl[:10])
    held = [row["held_out"] for row in log_of(tmp_path / "run")]
    assert min(held[-5:]) < held[0]


def test_a_stopped_run_ends_with_the_parameters_of_an_unbroken_one(
    recipe: Callable[..., ChatRecipe], texts: Path, tmp_path: Path
) -> None:
    unbroken = recipe(folder="whole").run(None, texts)

    def stop(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        if stage == "code" and step == 9:
            signal.raise_signal(signal.SIGTERM)

    assert recipe(folder="broken", report=stop).run(None, texts) is None
    asked = (tmp_path / "broken" / "questions.jsonl").read_text(encoding="utf-8")
    gone_on = recipe(folder="broken").run(None, texts)
    assert unbroken is not None
    assert gone_on is not None
    assert unbroken.code is not None
    assert gone_on.code is not None
    for name, tensor in unbroken.code.state_dict().items():
        assert torch.equal(tensor, gone_on.code.state_dict()[name]), name
    assert (tmp_path / "broken" / "questions.jsonl").read_text(encoding="utf-8") == asked


def test_questions_that_were_made_are_not_made_again(
    load_backbone: Callable[[], Backbone], corpus: tuple[str, ...], tmp_path: Path
) -> None:
    reader, path = ChatReader(load_backbone()), tmp_path / "questions.jsonl"
    rows = [" ".join(corpus[(start + 3 * i) % len(corpus)] for i in range(4)) for start in range(8)]
    told: list[tuple[int, int]] = []

    def made() -> list[Any]:
        return self_asked_windows(rows, reader, 64, 40, 0, path, lambda done, total: told.append((done, total)))

    windows = made()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert told[0][0] == 0
    assert told[-1] == (len(windows), len(windows))
    assert all(len(window.ids) <= 64 and window.questions for window in windows)
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:9], encoding="utf-8")  # as a crash leaves it
    assert made() == windows
    assert path.read_text(encoding="utf-8").splitlines() == lines
    with pytest.raises(DataError, match="needs at least 2"):
        self_asked_windows(["Too short."], reader, 64, 40, 0, tmp_path / "none.jsonl", lambda *done: None)


def test_what_a_fit_has_settled_is_not_changed(recipe: Callable[..., ChatRecipe]) -> None:
    with pytest.raises(ConfigError, match="cmt fit --bytes"):
        recipe(bits_per_token=128)
    with pytest.raises(ConfigError, match="text_steps are for a learned prefix"):
        recipe(dataclasses.replace(STEPS, text_steps=3))


def test_a_run_does_not_go_on_about_other_texts(recipe: Callable[..., ChatRecipe], texts: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(STEPS, code_steps=2)
    assert recipe(config).run(None, texts) is not None
    with pytest.raises(ConfigError, match="was begun with texts"):
        recipe(config).run(None, tmp_path / "others.jsonl")


@pytest.mark.parametrize("given", [False, True])
def test_trained_checkpoint_answers_from_its_own_memories(
    start: Path, tiny_llm_folder: Path, tiny_retriever_folder: Path, texts: Path, tmp_path: Path, given: bool
) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [
        {
            "source": "made",
            "qid": str(number),
            "doc_id": str(number),
            "title": "",
            "text": f"The capital of land {number} is Varde, and its club has {number} goals.",
            "question": f"What is the capital of land {number}?",
            "answers": ["Varde"],
        }
        for number in range(8)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = train_checkpoint(
        dataclasses.replace(STEPS, code_steps=2),
        questions if given else None,
        tmp_path / "run",
        tmp_path / "out",
        llm=str(tiny_llm_folder),
        retriever=str(tiny_retriever_folder),
        cache_dir=tmp_path,
        device="cpu",
        texts=None if given else texts,
        start=start,
        report=lambda line: None,
    )
    assert done
    assert (tmp_path / "run" / "questions.jsonl").exists() != given
    trained, before = Checkpoint.load(tmp_path / "out"), Checkpoint.load(start)
    assert trained.config == before.config  # its reading, its k and its calibration stay
    assert trained.training["before"] == before.training
    assert trained.code is not None
    assert before.code is not None
    assert not torch.equal(trained.code.encoder, before.code.encoder)
    model = CMT.load(str(tiny_llm_folder), str(tmp_path / "out"), str(tiny_retriever_folder), tmp_path, device="cpu")
    (memory,) = model.compress(model.windows("", "The capital of land 0 is Varde, and its club has 3 goals."))
    (answer,) = model.answer(["What is the capital?"], [[memory.code]], max_new_tokens=4)
    assert answer.completion_tokens > 0
