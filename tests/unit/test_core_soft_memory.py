"""The paper's parts: soft tokens, one context, their maps to keys and values, matching, and the memory-aware objective."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, MemoryFormatError
from cmt_core.generation.mixed_logits import memory_aware
from cmt_core.generation.query import Query
from cmt_core.llm.backbone import Backbone, KVShape
from cmt_core.memory.soft.alignment_maps import LinearMaps, LowRankMaps
from cmt_core.memory.soft.matching import Matching
from cmt_core.memory.soft.single_context import SingleContext
from cmt_core.memory.soft.soft_memory import SoftMemory
from cmt_core.memory.soft.soft_tokens import SoftTokens, salient_tokens, surprisal
from cmt_core.model import CMT
from cmt_core.retrieval.retriever import Retriever
from cmt_core.training.objective import contrastive_matching, cosine_matching

D = 64  # the tiny LLM's width
SOFT: dict[str, Any] = {
    "method": "soft_tokens", "alignment": "low_rank", "memory_width": D, "memory_vectors": 6, "alignment_rank": 4,
    "window_tokens": 64, "prefix_tokens": 8, "compressor_blocks": 1, "context_vectors": 5,
}  # fmt: skip
QUESTIONS = ["Who opened the bridge?", "What is the capital of Norland, and since when?"]


def soft_config(**changes: Any) -> MemoryConfig:
    return MemoryConfig(**(SOFT | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "kv_code"}, "kv_code is read by its own decoder"),
        ({"method": "kv_code", "alignment": "decoder", "aggregation": "single_context"}, "single_context attends"),
        ({"method": "kv_code", "alignment": "decoder", "matching": "cosine"}, "self-matching shapes soft_tokens"),
        ({"alignment": "decoder"}, "soft_tokens need alignment low_rank or linear"),
        ({"aggregation": "select"}, "select keeps tokens of kv_code"),
        ({"memory_width": 0}, "soft_tokens need memory_vectors"),
        ({"source_depth": 0.0}, "source_depth 0.0 is no share"),
        ({"source_depth": 1.1}, "source_depth 1.1 is no share"),
        ({"aggregation": "single_context", "context_vectors": 0}, "at least 1 of context_vectors"),
        ({"objective": "mix", "objective_weight": 0.0}, "objective mix needs a weight"),
        ({"objective": "contrast", "objective_weight": -0.1}, "objective contrast needs a weight"),
        ({"objective": "magic"}, "objective 'magic' is not known"),
        ({"matching": "magic"}, "matching 'magic' is not known"),
        ({"soft_start": "magic"}, "soft_start 'magic' is not known"),
    ],
)
def test_parts_that_do_not_combine_are_refused_in_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        soft_config(**changes)
    assert "\n" not in str(caught.value)


def test_soft_memory_has_the_size_that_its_configuration_names() -> None:
    assert soft_config().memory_bytes == 6 * D * 2
    assert soft_config().slot_tokens == 6
    with pytest.raises(ConfigError, match="has no soft tokens"):
        SoftMemory(MemoryConfig(), KVShape(3, 2, 16))


@pytest.mark.parametrize("start", ["learned", "salient"])
def test_padding_does_not_change_a_documents_soft_tokens(start: str) -> None:
    torch.manual_seed(0)
    compressor = SoftTokens(D, 6, 2, start)
    hidden, salience = torch.randn(1, 9, D), torch.rand(1, 9)
    padded = torch.cat([hidden, torch.randn(1, 7, D)], dim=1)
    mask = torch.cat([torch.ones(1, 9), torch.zeros(1, 7)], dim=1)
    alone = compressor(hidden, torch.ones(1, 9), salience)
    beside = compressor(padded, mask, torch.cat([salience, 9 * torch.ones(1, 7)], dim=1))
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.square().mean(dim=-1), torch.ones(1, 6), atol=1e-3, rtol=1e-3)


def test_salient_tokens_are_the_most_surprising_in_reading_order() -> None:
    salience = torch.tensor([[0.1, 5.0, 0.2, 9.0, 3.0, 99.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    places, found = salient_tokens(salience, mask, 3)
    assert places.tolist() == [[1, 3, 4]]
    places, found = salient_tokens(salience, mask, 6)
    assert (places[0, :5].tolist(), found.tolist()) == ([0, 1, 2, 3, 4], [[True] * 5 + [False]])


def test_start_from_salient_tokens_reads_them() -> None:
    """Another salient token gives another memory, although the document is the same."""
    torch.manual_seed(0)
    compressor, hidden, mask = SoftTokens(D, 2, 1, "salient"), torch.randn(1, 8, D), torch.ones(1, 8)
    one, other = (compressor(hidden, mask, torch.eye(8)[i : i + 1] + 0.01 * torch.arange(8)) for i in (0, 3))
    assert not torch.allclose(one, other, atol=1e-3)


@torch.no_grad()
def test_surprisal_is_the_llms_own(tiny_backbone: Backbone) -> None:
    ids = torch.tensor([[40, 41, 42, 43]])
    nothing = torch.zeros(0, tiny_backbone.shape.width)
    _, hidden = tiny_backbone.read_with_hidden(ids, torch.ones_like(ids), nothing)
    nats = surprisal(tiny_backbone, ids, hidden)
    logits = tiny_backbone.model(input_ids=ids).logits[0]
    expected = [0.0] + [float(-logits[t - 1].log_softmax(-1)[ids[0, t]]) for t in (1, 2, 3)]
    assert nats[0].tolist() == pytest.approx(expected, abs=1e-3)


def test_low_rank_maps_start_at_the_llms_own_projections(tiny_backbone: Backbone) -> None:
    maps, memory = LowRankMaps(tiny_backbone.shape, D, 4), torch.randn(2, 3, D)
    rows = maps(tiny_backbone, memory)
    expected = tiny_backbone.project(memory[..., None, :].expand(-1, -1, tiny_backbone.shape.layers, -1))
    torch.testing.assert_close(rows, expected)
    rows.square().mean().backward()
    assert float(maps.up.grad.abs().max()) > 0  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in tiny_backbone.model.parameters())


@torch.no_grad()
def test_low_rank_maps_start_at_the_layers_own_inputs(tiny_backbone: Backbone) -> None:
    """A layer's own input gives its keys and values back; of the other layers' a higher rank gives more back."""
    ids = torch.randint(2, 300, (40, 30), generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(0, tiny_backbone.shape.width)
    inputs = tiny_backbone.layer_inputs(ids, torch.ones_like(ids), nothing)
    states = tiny_backbone.model(input_ids=ids, output_hidden_states=True).hidden_states[:3]
    torch.testing.assert_close(inputs, torch.stack(states, dim=2), atol=1e-4, rtol=1e-4)
    exact, source, _ = tiny_backbone.read_at_depth(ids, torch.ones_like(ids), nothing, 2)
    torch.testing.assert_close(source, states[2], atol=1e-4, rtol=1e-4)
    errors = []
    for rank in (D, 4):
        maps = LowRankMaps(tiny_backbone.shape, D, rank)
        maps.start_from(source.flatten(0, 1), inputs.flatten(0, 1))
        made = maps(tiny_backbone, torch.nn.functional.rms_norm(source, (D,)))
        layers = (made - exact).square().unflatten(-1, (3, -1)).mean(dim=(0, 1, 3))
        errors.append((layers / exact.unflatten(-1, (3, -1)).var(dim=(0, 1, 3))).tolist())
    assert errors[0][2] < 0.01
    assert all(full < low for full, low in zip(errors[0][:2], errors[1][:2], strict=True))


@torch.no_grad()
def test_linear_maps_start_at_the_least_squares_fit_of_real_rows(tiny_backbone: Backbone) -> None:
    torch.manual_seed(0)
    maps, source = LinearMaps(tiny_backbone.shape, D), torch.randn(2000, D) * torch.linspace(0.5, 3, D) + 1
    unit = torch.nn.functional.rms_norm(source, (D,))
    rows = unit @ torch.randn(D, tiny_backbone.shape.width) + 2
    maps.start_from(source, rows)
    torch.testing.assert_close(maps(tiny_backbone, unit), rows, atol=0.05, rtol=0.05)


def test_short_document_gives_its_salient_tokens_again() -> None:
    """No place of a memory is empty, and at the start it holds the very tokens, at unit RMS."""
    compressor, hidden = SoftTokens(D, 5, 1, "salient"), torch.randn(1, 3, D)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    memory = compressor(hidden, mask, torch.tensor([[0.1, 5.0, 9.0]]))
    unit = torch.nn.functional.rms_norm(hidden[0], (D,))
    torch.testing.assert_close(memory[0], unit[[0, 1, 0, 1, 0]], atol=1e-4, rtol=1e-4)


def test_single_context_starts_as_the_best_documents_memory() -> None:
    torch.manual_seed(0)
    aggregator, memories = SingleContext(D, 6, 6), torch.nn.functional.rms_norm(torch.randn(1, 3, 6, D), (D,))
    match = torch.tensor([[0.1, 0.9, 0.2]])
    with torch.no_grad():
        context, shares = aggregator(torch.randn(1, D), memories, torch.ones(1, 3).bool(), match)
    assert float(shares[0, 1]) > 0.99
    assert float(torch.cosine_similarity(context[0], memories[0, 1], dim=-1).min()) > 0.95


def test_self_matching_starts_with_a_question_near_the_memory_of_like_hidden_states() -> None:
    """Hidden states that share a large common part, which a plain cosine sees alone."""
    torch.manual_seed(0)
    topics = torch.randn(200, D)
    memories = 10 + topics[:, None] + 0.3 * torch.randn(200, 6, D)
    questions = -7 + topics + 0.3 * torch.randn(200, D)
    matching = Matching(D)
    with torch.no_grad():
        matching.start_from(questions[:150], memories[:150])
        found = (matching.questions(questions[150:]) @ matching.documents(memories[150:]).T).argmax(dim=1)
    assert (found == torch.arange(50)).float().mean() > 0.9


def test_single_context_leaves_out_what_was_not_found_and_weighs_by_match() -> None:
    torch.manual_seed(0)
    aggregator, question, memories = SingleContext(D, 5, 6), torch.randn(2, D), torch.randn(2, 3, 6, D)
    torch.nn.init.normal_(aggregator.question.weight, std=D**-0.5)  # at first the question acts by its match alone
    present = torch.tensor([[True, True, False], [True, True, True]])
    context, shares = aggregator(question, memories, present)
    assert context.shape == (2, 5, D)
    assert shares.sum(dim=-1).tolist() == pytest.approx([1.0, 1.0])
    assert float(shares[0, 2]) == 0
    memories[0, 2] = 100.0
    torch.testing.assert_close(aggregator(question, memories, present)[0][0], context[0])
    _, matched = aggregator(question, memories, present, torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.0, 0.0]]))
    assert float(matched[0, 1]) > float(shares[0, 1]) + 0.2
    other, _ = aggregator(-question, memories, present)
    assert not torch.allclose(other[1], context[1], atol=1e-3)


def test_cosine_matching_rewards_the_own_document_and_punishes_collapse() -> None:
    axes, own = torch.eye(4), torch.arange(4)
    right = cosine_matching(axes, axes, own, 1.0)
    wrong = cosine_matching(axes, axes.roll(1, 0), own, 1.0)
    assert float(wrong - right) == pytest.approx(1.0)
    assert float(right) == pytest.approx(-1 + math.log(math.exp(-4)))  # all pairs at squared distance 2, t = 2
    collapsed = axes[:1].expand(4, -1)
    assert float(cosine_matching(collapsed, collapsed, own, 1.0)) == pytest.approx(-1.0)
    assert float(cosine_matching(axes[:1], axes[:1], own[:1], 1.0)) == pytest.approx(-1.0)


def test_contrastive_matching_is_the_log_loss_of_finding_the_document() -> None:
    axes, own = torch.eye(3), torch.arange(3)
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(contrastive_matching(axes, axes, own, temperature=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("objective", "a", "weight"),
    [("plain", 0.7, 1.0), ("contrast", 0.0, 1.0), ("mix", 1.0, 1.0), ("contrast", 0.5, 1.5)],
)
def test_memory_aware_forms_are_one_mix(objective: str, a: float, weight: float) -> None:
    assert soft_config(objective=objective, objective_weight=a).decoding_weight == weight
    z_mem, z_plain = torch.randn(4, 7), torch.randn(4, 7)
    contrast = (1 + a) * z_mem - a * z_plain
    if objective == "contrast":
        torch.testing.assert_close(memory_aware(z_mem, z_plain, weight), contrast)
    else:
        torch.testing.assert_close(memory_aware(z_mem, z_plain, weight), z_mem)


def soft_checkpoint(backbone: Backbone, tiny: Checkpoint, config: MemoryConfig) -> Checkpoint:
    torch.manual_seed(3)
    soft = SoftMemory(config, backbone.shape)
    return Checkpoint(
        config, backbone.shape, tiny.llm_fingerprint, tiny.encoding_prefix, tiny.reading_prefix, None, None,
        {"steps": 0}, None, soft,
    )  # fmt: skip


PARTS = [
    {"alignment": "low_rank", "aggregation": "stack", "soft_start": "learned"},
    {"alignment": "linear", "aggregation": "stack"},
    {"alignment": "low_rank", "aggregation": "single_context", "matching": "cosine"},
    {"alignment": "linear", "aggregation": "single_context", "soft_start": "learned", "objective": "contrast"},
]


@pytest.mark.parametrize("parts", PARTS)
def test_checkpoint_of_soft_tokens_is_saved_loaded_and_serves(
    parts: dict[str, Any],
    tiny_folders: Any,
    tiny_backbone: Backbone,
    tiny_checkpoint: Checkpoint,
    corpus: tuple[str, ...],
    tmp_path: Path,
) -> None:
    made = soft_checkpoint(tiny_backbone, tiny_checkpoint, soft_config(**parts))
    made.save(tmp_path / "one")
    loaded = Checkpoint.load(tmp_path / "one")
    assert loaded.config == made.config
    assert loaded.soft is not None
    assert made.soft is not None
    for name, tensor in made.soft.state_dict().items():
        assert torch.equal(loaded.soft.state_dict()[name], tensor.half().float()), name
    loaded.save(tmp_path / "two")
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    cmt = CMT.load(
        str(tiny_folders.llm), str(tmp_path / "one"), str(tiny_folders.retriever), tiny_folders.cache, device="cpu"
    )
    memories = [memory for text in corpus for memory in cmt.compress(cmt.windows("", text))]
    assert {cmt.vectors_of(memory) for memory in memories} == {6}
    codes = [memory.code for memory in memories]
    assert {len(code) for code in codes} == {cmt.memory_bytes} == {6 * D * 2}
    assert len(set(codes)) == len(codes)
    answers = cmt.answer(QUESTIONS, [codes[:1], codes[1:4]], max_new_tokens=4)
    assert [len(answer.weights) for answer in answers] == [1, 3]
    assert [sum(answer.weights) for answer in answers] == pytest.approx([1.0, 1.0])
    with pytest.raises(MemoryFormatError, match="is not of this checkpoint"):
        cmt.answer(QUESTIONS[:1], [[codes[0][:-2]]], max_new_tokens=1)


def exact(tiny_folders: Any, backbone: Backbone, tiny: Checkpoint, **parts: Any) -> CMT:
    """In float32, for claims about tokens."""
    retriever = Retriever(tiny_folders.retriever, torch.device("cpu"))
    return CMT(backbone, soft_checkpoint(backbone, tiny, soft_config(**parts)), retriever, "tiny")


@pytest.mark.parametrize("parts", PARTS)
def test_soft_answer_does_not_depend_on_its_neighbours_and_is_that_of_the_running_batch(
    parts: dict[str, Any], tiny_folders: Any, load_backbone: Any, tiny_checkpoint: Checkpoint, corpus: tuple[str, ...]
) -> None:
    cmt = exact(tiny_folders, load_backbone(), tiny_checkpoint, **parts)
    codes = [memory.code for text in corpus for memory in cmt.compress(cmt.windows("", text))]
    chosen = [codes[:1], codes[1:4]]
    together = cmt.answer(QUESTIONS, chosen, max_new_tokens=6)
    batch = cmt.answer_batch()
    for question, own, other in zip(QUESTIONS, chosen, together, strict=True):
        (alone,) = cmt.answer([question], [own], max_new_tokens=6)
        assert (alone.text, alone.finish_reason) == (other.text, other.finish_reason)
        assert alone.weights == pytest.approx(other.weights, abs=1e-4)
        (started,) = batch.join([Query(question, memories=own)])
        ids = list(started.tokens)
        while len(ids) < 6 and ids[-1] is not None:
            ids += batch.step()[started.row]
        batch.leave(started.row)
        assert batch.text([i for i in ids if i is not None]).strip() == alone.text


def test_memory_aware_decoding_changes_the_answer_with_its_weight(
    tiny_folders: Any, load_backbone: Any, tiny_checkpoint: Checkpoint, corpus: tuple[str, ...]
) -> None:
    """A tiny weight on the memory answers as without one; contrast a = 0 answers as plain reading does."""
    texts = {}
    settings = {"plain": ("plain", 0.5), "none": ("contrast", 0.0), "little": ("mix", 1e-6), "much": ("contrast", 30.0)}
    for name, (objective, a) in settings.items():
        cmt = exact(tiny_folders, load_backbone(), tiny_checkpoint, objective=objective, objective_weight=a)
        (memory,) = cmt.compress(cmt.windows("", corpus[0]))
        (answer,) = cmt.answer(QUESTIONS[:1], [[memory.code]], max_new_tokens=6)
        texts[name] = answer.text
        if name == "little":
            batch = cmt.answer_batch()
            (started,) = batch.join([Query(QUESTIONS[0], memories=[memory.code], memory_weight=0.0)])
            without = [*started.tokens, *(token for _ in range(5) for token in batch.step()[started.row])]
            assert answer.text == batch.text([i for i in without if i is not None]).strip()
    assert texts["plain"] == texts["none"]
    assert len(set(texts.values())) == 3


def test_soft_checkpoint_without_its_parts_is_refused(
    tiny_backbone: Backbone, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = soft_config()
    made = soft_checkpoint(tiny_backbone, tiny_checkpoint, config)
    dataclasses.replace(made, soft=SoftMemory(soft_config(alignment="linear"), made.shape)).save(tmp_path)
    with pytest.raises(CheckpointError, match="can't be read"):
        Checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="needs a code with its rounding, or soft tokens"):
        dataclasses.replace(made, soft=None).format(tiny_backbone)


def test_ablation_reads_k_documents_or_the_whole_bank(
    tiny_folders: Any, tiny_backbone: Backbone, tiny_checkpoint: Checkpoint, tiny_cmt: CMT
) -> None:
    from cmt_core.data.qa import QAExample
    from cmt_core.evaluation.ablation import Variant, ablation

    examples = [
        QAExample(f"d{i}", "", f"Town {i} has {i} bells.", f"How many bells has {i}?", (str(i),)) for i in range(6)
    ]
    whole = exact(tiny_folders, tiny_backbone, tiny_checkpoint, **PARTS[2])
    whole.model_id = "whole"
    variants = [Variant("whole", whole, 2), Variant("no top-k", whole, None), Variant("stacked", tiny_cmt, 1)]
    points = ablation(variants, examples, questions=4)
    assert [(point.system, point.k) for point in points] == [("whole", 2), ("no top-k", 6), ("stacked", 1)]
    assert points[0].f1_lost == 0
    with pytest.raises(ConfigError, match="stacked: only single_context"):
        ablation([Variant("stacked", tiny_cmt, None)], examples, questions=4)
