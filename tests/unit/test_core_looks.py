"""The learned look at the documents found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, DataError
from cmt_core.grounded import of_most_read
from cmt_core.look_training import LookedAt, fit_look_head, look_layer, train_looks
from cmt_core.memory_bank import MemoryBank
from cmt_core.model import CMT, Answer
from cmt_core.reading.aggregation import Select
from cmt_core.retrieval.looks import Look, LookHead, most_read
from cmt_core.training.command import train_checkpoint
from cmt_core.training.recipe_config import RecipeConfig
from tests.unit.conftest import CORPUS, TinyFolders, write_corpus_questions
from tests.unit.test_core_training import write_questions

STATE = 12


def some_looks(count: int, own: int, seed: torch.Generator) -> LookedAt:
    """Looks whose states tell their own document by one number, which is large there, and whose scores are noise."""
    looks = []
    for place in range(count):
        state = torch.randn(STATE, generator=seed)
        state[3] += 4.0 * (place == own)
        looks.append(Look(-float(torch.rand(1, generator=seed)), -1.0, float(torch.rand(1, generator=seed)), state))
    ranks = torch.rand(count, generator=seed).tolist()
    return LookedAt(ranks, looks, [place == own for place in range(count)])


def test_look_learns_what_tells_a_document_from_another() -> None:
    seed = torch.Generator().manual_seed(0)
    examples = [some_looks(2 + number % 3, number % 2, seed) for number in range(400)]
    head = fit_look_head(examples[:300], layer=5)
    assert head.layer == 5
    right = 0
    for one in examples[300:]:
        odds = head.log_odds(one.ranks, one.looks)
        right += one.own[odds.index(max(odds))]
    assert right >= 95
    assert int(head.states.abs().argmax()) == 3


def test_scores_alone_are_learned_too() -> None:
    seed = torch.Generator().manual_seed(0)
    examples = []
    for number in range(200):
        own = number % 2
        nats = [-20.0 - 5 * (place != own) - float(torch.rand(1, generator=seed)) for place in (0, 1)]
        looks = [Look(one, -1.0, 2.0, torch.zeros(STATE)) for one in nats]
        examples.append(LookedAt([0.5, 0.5], looks, [place == own for place in (0, 1)]))
    head = fit_look_head(examples, layer=1)
    assert head.scores[1] > 0
    assert head.states.abs().max() < 1e-6


def asking(model: CMT, head: LookHead | None) -> CMT:
    """A model that selects, with this look."""
    model.select = Select(model.backbone.shape, model.backbone.query_heads, model.config.context_vectors)
    model.config = dataclasses.replace(model.config, aggregation="select", likelihood_weight=0.37)
    model.look_head = head
    return model


def test_look_decides_which_document_is_read(tiny_folders: TinyFolders) -> None:
    model = asking(tiny_folders.load_cmt(), None)
    memories = [memory.code for text in CORPUS[:3] for memory in model.compress(model.windows("", text))[:1]]
    scores = [[0.5, 0.49, 0.48]]
    looks = model.looks(["Who opened it?"] * 3, [[one] for one in memories], 1)
    D = model.backbone.width
    assert all(look.state.shape == (2 * D,) and look.nats < 0 and look.sureness < 0 < look.entropy for look in looks)
    for wanted in range(3):
        towards = looks[wanted].state - (sum(look.state for look in looks) / 3)
        model.look_head = LookHead(1, torch.zeros(4), 1e3 * towards)
        assert model.likely(["Who opened it?"], [memories], scores)[0][0] == wanted
    assert model.likely(["Who opened it?"], [memories[:1]], [[0.5]]) == [[0]]  # nothing to look at


def test_more_are_looked_at_than_are_read(tiny_folders: TinyFolders) -> None:
    """The document that is found sixth can be the one that is read, and is a source; the four others of eight are none."""
    model = asking(tiny_folders.load_cmt(), None)
    model.config = dataclasses.replace(model.config, prior_temperature=10.0)  # any may be right
    bank = MemoryBank(model, min_score=-1.0)
    for number in range(9):
        bank.add(f"{CORPUS[number % len(CORPUS)]} Number {number}.", doc_id=str(number))
    question = "Who opened it?"
    found = bank.nearest([question], 8)[0]
    assert [model.looked_at(k) for k in (1, 3, 4, 5)] == [1, 3, 4, 5]
    looks = model.looks([question] * 8, bank.codes([[hit.row] for hit in found]), 1)
    mean = sum(look.state for look in looks) / 8
    wanted = max(range(4, 8), key=lambda place: float((looks[place].state - mean).norm()))
    model.look_head = LookHead(1, torch.zeros(4), 1e3 * (looks[wanted].state - mean))
    assert [model.looked_at(k) for k in (1, 3, 4, 5)] == [1, 3, 8, 10]
    answer = bank.ask(question, 4, mode="memory")
    assert len(answer.sources) == len(answer.weights) == 4
    best = max(range(4), key=answer.weights.__getitem__)
    assert answer.sources[best].entry.doc_id == bank.rows[found[wanted].row].entry.doc_id
    assert len(bank.search(question, 4)) == 4


def test_most_read_are_in_the_order_in_which_they_were_found() -> None:
    assert most_read([0.0, 0.1, 0.0, 0.9, 0.0], 3) == [0, 1, 3]
    assert most_read([0.5, 0.5], 4) == [0, 1]
    assert most_read([], 4) == []
    assert most_read([0.1, 0.2, 0.7, 0.0, 0.0], 2, (4, 2)) == [2, 4]  # ψ may keep no token of one of two that it takes


def test_answer_of_two_names_both_even_where_one_got_no_attention() -> None:
    answer = Answer("Lund", 5, 1, "stop", [0.1, 0.1, 0.1, 0.1, 0.6, 0.0], together=(5, 4))
    kept, places = of_most_read(answer, 4)
    assert places == [0, 1, 4, 5]
    assert kept.together == (3, 2)
    assert kept.weights == [0.1, 0.1, 0.6, 0.0]


def test_look_of_a_question_does_not_depend_on_its_neighbours(tiny_folders: TinyFolders) -> None:
    model = tiny_folders.load_cmt()
    memories = [memory.code for text in CORPUS[:2] for memory in model.compress(model.windows("", text))[:1]]
    questions = ["Who?", "When did the council of the town vote on the bridge over the river?"]
    together = model.looks(questions, [[one] for one in memories], 2)
    for question, memory, beside in zip(questions, memories, together, strict=True):
        (alone,) = model.looks([question], [[memory]], 2)
        assert alone.nats == pytest.approx(beside.nats, rel=0.02)
        assert alone.entropy == pytest.approx(beside.entropy, rel=0.02, abs=0.02)
        torch.testing.assert_close(alone.state, beside.state, atol=0.1, rtol=0.05)


def test_likelihood_decides_where_the_retriever_gives_no_scores(tiny_folders: TinyFolders) -> None:
    model = asking(tiny_folders.load_cmt(), LookHead(1, torch.full((4,), torch.nan), torch.zeros(2)))
    memories = [memory.code for text in CORPUS[:2] for memory in model.compress(model.windows("", text))[:1]]
    (with_head, _), (without, _) = (
        asking(model, head)._contexts._prior(["Who?"], [memories], None, None) for head in (model.look_head, None)
    )
    assert torch.equal(with_head, without)
    assert with_head.isfinite().any()


def test_trained_look_is_saved_with_the_checkpoint_and_used(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    start = Checkpoint.load(tiny_folders.checkpoint)
    config = dataclasses.replace(start.config, aggregation="select", prior_temperature=1.0)
    model = asking(tiny_folders.load_cmt(), None)
    model.config = config
    start = dataclasses.replace(start, config=config, select=model.select)
    data = write_corpus_questions(tmp_path / "qa.jsonl")
    told: list[str] = []
    made = train_looks(model, start, data, sources=["news"], report=told.append)
    assert made.config.look_layer == look_layer(model.backbone.shape.layers)
    assert "first for" in told[-1]
    made.save(tmp_path / "made")
    loaded = dataclasses.replace(tiny_folders, checkpoint=tmp_path / "made").load_cmt()
    assert loaded.look_head is not None
    assert made.look_head is not None
    torch.testing.assert_close(loaded.look_head.states, made.look_head.states)
    with pytest.raises(DataError, match="no question of others"):
        train_looks(model, start, data, sources=["others"])
    with pytest.raises(ConfigError, match="only ψ select"):
        train_looks(model, dataclasses.replace(start, select=None), data)


def test_damaged_looks_are_refused(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    start = Checkpoint.load(tiny_folders.checkpoint)
    config = dataclasses.replace(start.config, look_layer=1)
    dataclasses.replace(start, config=config).save(tmp_path / "without")
    with pytest.raises(CheckpointError, match="look"):
        Checkpoint.load(tmp_path / "without")
    deep = dataclasses.replace(start.config, look_layer=99)
    head = LookHead(99, torch.zeros(4), torch.zeros(8))
    dataclasses.replace(start, config=deep, look_head=head).save(tmp_path / "deep")
    with pytest.raises(CheckpointError, match="look_layer 99 of an LLM with"):
        Checkpoint.load(tmp_path / "deep")
    with pytest.raises(ConfigError, match="look_layer -1 is no layer"):
        MemoryConfig(look_layer=-1)
    with pytest.raises(ConfigError, match="shapes"):
        LookHead(1, torch.zeros(3), torch.zeros(8))


def test_two_documents_are_read_together_where_a_look_finds_an_answer_behind_both_alone(
    tiny_folders: TinyFolders,
) -> None:
    model = asking(tiny_folders.load_cmt(), None)
    memories = [memory.code for text in CORPUS[:3] for memory in model.compress(model.windows("", text))[:1]]
    question, scores, completed = ["Who opened it?"], [[0.9, 0.2, 0.1]], [[2, None, None]]
    (alone,) = model.looks(question, [memories[:1]], 1)
    (both,) = model.looks(question, [[memories[2], memories[0]]], 1)
    towards = both.state - alone.state
    towards = towards / towards.square().sum()
    for gain, read in ((4.0, (2, 0)), (3.0, ()), (-4.0, ())):
        model.look_head = LookHead(1, torch.zeros(4), gain * towards)
        assert model.context(question, [memories], scores, completed).two(0) == read


def test_a_look_is_not_taken_over_to_other_memories(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """It was trained behind those of the start; what is trained from there has none, and loads."""
    start = Checkpoint.load(tiny_folders.checkpoint)
    backbone = tiny_folders.load_cmt().backbone
    head = LookHead(1, torch.zeros(4), torch.zeros(2 * backbone.width))
    dataclasses.replace(start, config=dataclasses.replace(start.config, look_layer=1), look_head=head).save(
        tmp_path / "start"
    )
    assert Checkpoint.load(tmp_path / "start").look_head is not None
    recipe = RecipeConfig(prefix_steps=0, code_steps=1, groups_per_step=1, group_windows=2, k_cycle=(1,), pca_windows=4)
    done = train_checkpoint(
        recipe, write_questions(tmp_path / "qa.jsonl"), tmp_path / "run", tmp_path / "out", llm=str(tiny_folders.llm),
        retriever=str(tiny_folders.retriever), cache_dir=tiny_folders.cache, device="cpu", start=tmp_path / "start",
        report=lambda line: None,
    )  # fmt: skip
    assert done
    assert Checkpoint.load(tmp_path / "out").look_head is None
