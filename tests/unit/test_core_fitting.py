"""A fit makes a checkpoint for an LLM without training: the code keeps what answers need, and the fit says how much of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cmt_core.checkpoint import Checkpoint
from cmt_core.errors import ConfigError, DataError
from cmt_core.fitting.card import card
from cmt_core.fitting.fit import FitResult, fit
from cmt_core.fitting.fit_config import FitConfig
from cmt_core.fitting.metric import gradient_weights, over_rotary_pairs
from cmt_core.fitting.reader import ChatReader, Item
from cmt_core.llm.backbone import Backbone, KVShape
from cmt_core.memory.compressor import KVCode
from cmt_core.model import CMT
from cmt_core.retrieval.retriever import Retriever

SIZES = FitConfig(token_bytes=24, windows=16, questions=6, held_out=6, window_tokens=64)


@pytest.fixture(scope="session")
def texts(corpus: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for a tiny fit: the corpus' sentences in many orders."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [" ".join(corpus[(start + 3 * i) % len(corpus)] for i in range(4)) for start in range(24)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_retriever(tiny_retriever_folder: Path) -> Retriever:
    return Retriever(tiny_retriever_folder, torch.device("cpu"))


@pytest.fixture(scope="session")
def fitted(load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, texts: Path) -> FitResult:
    return fit(load_backbone(), tiny_retriever, SIZES, texts=texts)


def test_fitted_checkpoint_reads_chat_with_memories_of_the_asked_size(fitted: FitResult, tmp_path: Path) -> None:
    fitted.checkpoint.save(tmp_path / "fitted")
    loaded = Checkpoint.load(tmp_path / "fitted")
    assert loaded.config.reading == "chat"
    assert loaded.config.token_bytes == 24
    assert (loaded.config.code_storage, loaded.config.block_tokens) == ("entropy", 4)
    assert loaded.training["fidelity"]["windows"] == fitted.fidelity.windows > 0
    assert torch.equal(loaded.encoding_prefix, loaded.reading_prefix)


def test_more_bytes_keep_more(
    load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, texts: Path, fitted: FitResult
) -> None:
    few = fit(load_backbone(), tiny_retriever, dataclasses.replace(SIZES, token_bytes=6), texts=texts)
    assert fitted.fidelity.exact_nats < fitted.fidelity.coded_nats < few.fidelity.coded_nats


def test_card_tells_what_was_read_and_not_what_was_wanted(
    load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, texts: Path
) -> None:
    wanted = FitConfig(token_bytes=24, windows=90, questions=64, held_out=6, window_tokens=64)
    made = fit(load_backbone(), tiny_retriever, wanted, texts=texts, described={"llm": "tiny", "retriever": "tiny"})
    training = made.checkpoint.training
    assert training["asked"] == training["windows"] < 64
    written = card(made.checkpoint, "tiny")
    assert f"{training['windows']} windows, " in written
    assert f"{training['asked']} questions for the gradient" in written
    assert training["cpu_seconds"] > 0


def test_fit_leaves_the_llm_as_it_was(
    load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, texts: Path
) -> None:
    backbone = load_backbone()
    before = backbone.fingerprint()
    fit(backbone, tiny_retriever, SIZES, texts=texts)
    assert backbone.fingerprint() == before
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_more_bytes_a_token_lose_less(
    load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, texts: Path, fitted: FitResult
) -> None:
    rich = fit(load_backbone(), tiny_retriever, FitConfig(56, 16, 6, 6, 64), texts=texts).fidelity
    poor = fitted.fidelity
    assert rich.exact_nats == pytest.approx(poor.exact_nats, abs=1e-4)  # the same windows and questions
    assert abs(rich.coded_nats - rich.exact_nats) < abs(poor.coded_nats - poor.exact_nats)


def test_same_seed_gives_the_same_checkpoint(
    load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, texts: Path, fitted: FitResult, tmp_path: Path
) -> None:
    again = fit(load_backbone(), tiny_retriever, SIZES, texts=texts)
    for name, one in (("a", fitted), ("b", again)):
        one.checkpoint.save(tmp_path / name)
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


def test_gradient_weights_are_the_gradients_that_finite_differences_show(tiny_backbone: Backbone) -> None:
    reader = ChatReader(tiny_backbone)
    item = reader.windows(["The mayor opened the new bridge over the river."], 64, lambda *_: None, "")[0]
    item.prompt, item.target = reader.prompting.question("Who opened it?"), reader.prompting.answer("the mayor", False)
    weights = gradient_weights(reader, [item], lambda *_: None, "")
    H, d = tiny_backbone.shape.heads, tiny_backbone.shape.head_dim
    of_values = [H * d + 3, 3 * H * d + 1, 5 * H * d + 7]
    of_keys = [0, 2 * H * d + 5, 4 * H * d + 2]  # the other number of their rotary pair stands d / 2 further
    squares = [_square(reader, item, number) for number in of_values]
    squares += [(_square(reader, item, one) + _square(reader, item, one + d // 2)) / 2 for one in of_keys]
    expected = torch.stack(squares).sqrt()
    made = weights[of_values + of_keys]
    torch.testing.assert_close(made / made.mean(), expected / expected.mean(), rtol=0.03, atol=0.01)
    torch.testing.assert_close(weights[of_keys], weights[[one + d // 2 for one in of_keys]])


def _square(reader: ChatReader, item: Item, number: int) -> torch.Tensor:
    """The sum over tokens of the squared slope of the loss in one of their numbers, by central differences."""
    step, T = 1e-2, len(item.exact)
    moved = item.exact.expand(2 * T, -1, -1).clone()
    each = torch.arange(T)
    moved[each, each, number] += step
    moved[T + each, each, number] -= step
    with torch.no_grad():
        nats = reader.nats(reader.context(list(moved)), [item] * (2 * T))
    return ((nats[:T] - nats[T:]) / (2 * step)).square().sum()


def test_rotary_pairs_of_keys_share_a_weight_and_values_keep_theirs() -> None:
    shape = KVShape(layers=2, heads=1, head_dim=4)
    squares = torch.arange(16.0)
    pooled = over_rotary_pairs(squares, shape).view(2, 2, 4)
    assert pooled[0, 0].tolist() == [1, 2, 1, 2]
    assert pooled[0, 1].tolist() == [4, 5, 6, 7]
    assert pooled[1, 0].tolist() == [9, 10, 9, 10]


def test_pca_in_a_metric_spends_its_components_where_errors_cost() -> None:
    shape = KVShape(layers=1, heads=1, head_dim=4)
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([9.0, 9, 9, 9, 1, 1, 1, 1])
    weights = torch.tensor([0.01] * 4 + [1.0] * 4)
    code = KVCode(shape, 4)
    code.start_from_pca(x, shape, weights)
    error = (code.decode(code.encode(x), torch.float32) - x).square().mean(dim=0).detach()
    assert float(error[4:].max()) < 0.01
    plain = KVCode(shape, 4)
    plain.start_from_pca(x, shape)
    lost = (plain.decode(plain.encode(x), torch.float32) - x).square().mean(dim=0).detach()
    assert float(lost[4:].sum()) > 10 * float(error[4:].sum())


def test_given_questions_and_answers_are_the_targets(
    load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, texts: Path, tmp_path: Path
) -> None:
    asked = tmp_path / "asked.jsonl"
    row = {"doc_id": "1", "text": "The mayor opened it.", "question": "Who opened it?", "answers": ["The mayor"]}
    asked.write_text("".join(json.dumps(row | {"doc_id": str(i)}) + "\n" for i in range(8)), encoding="utf-8")
    made = fit(load_backbone(), tiny_retriever, SIZES, texts=texts, questions=asked)
    assert made.checkpoint.training["texts"] == f"{asked} and {texts}"
    assert made.checkpoint.training["windows"] == 16


@pytest.mark.parametrize(
    ("sizes", "rows", "error", "why"),
    [
        (FitConfig(24, 16, 6, 6, 64), 2, DataError, "holds 2 windows of text, and a fit needs at least 8"),
        (FitConfig(200, 16, 6, 6, 64), 24, ConfigError, "want 704 components, and this LLM has 192 numbers a token"),
        (FitConfig(48, 6, 6, 2, 64), 8, DataError, "a code of 176 components needs at least 352"),
    ],
)
def test_too_little_text_or_too_many_bytes_are_one_line(
    load_backbone: Callable[[], Backbone],
    tiny_retriever: Retriever,
    tmp_path: Path,
    sizes: FitConfig,
    rows: int,
    error: type[Exception],
    why: str,
) -> None:
    path = tmp_path / "few.jsonl"
    text = "The mayor opened the new bridge over the river, and a storm cancelled the ferry to the island."
    path.write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(rows)), encoding="utf-8")
    with pytest.raises(error, match=why) as caught:
        fit(load_backbone(), tiny_retriever, sizes, texts=path)
    assert "\n" not in str(caught.value)


def test_fitted_memory_is_read_behind_the_head_as_the_text_would_be(
    load_backbone: Callable[[], Backbone], tiny_retriever: Retriever, fitted: FitResult
) -> None:
    """With the exact rows in place of the code, the answer is the one to the text itself: places and template agree."""
    backbone = load_backbone()
    model = CMT(backbone, fitted.checkpoint, tiny_retriever, "fitted")
    question, text = "Who opened the bridge?", "The mayor opened the new bridge."
    of_text = model.ask_of_text([question], [[text]], "Be short.")
    ids = [*fitted_head(model), *model.prompting.texts([text]), *of_text.prompts[0]]
    plain = backbone.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
    first = model.write(of_text, 1)[0]
    assert first.text == model.tokens.text([int(plain)]).strip()
    memory = model.compress(model.windows("", text))[0]
    asked = model.ask([question], [[memory.code]], [[0.9]], "Be short.")
    assert asked.prompts == of_text.prompts
    assert int(asked.reading.context.next_position[0]) == len(fitted_head(model)) + memory.n_tokens


def fitted_head(model: CMT) -> list[int]:
    head: list[int] = model.prompting.head  # type: ignore[attr-defined]
    return head


def test_a_few_easy_questions_leave_the_settings_where_many_have_shown_them() -> None:
    from cmt_core.fitting.calibration import _best_prior

    easy = [[0.9, 0.3, 0.2, 0.1]] * 6
    nats = [[-20.0, -24.0, -24.0, -24.0]] * 6
    temperature, weight, own = _best_prior([[number, 7, 8, 9] for number in range(6)], easy, nats)
    assert own > -0.2
    assert (temperature, weight) != (0.03, 1.0)  # the sharpest, which such questions alone would choose
    mixed = [[0.9, 0.3, 0.2, 0.1], [0.5, 0.3, 0.2, 0.1]] * 3
    assert _best_prior([[number, 7, 8, 9] for number in range(6)], mixed, nats)[:2] == (0.1, 0.37)


def test_a_likelihood_that_misleads_gets_no_weight() -> None:
    from cmt_core.fitting.calibration import _best_prior

    scores = [[0.5, 0.45, 0.2, 0.1]] * 8
    wrong = [[-30.0, -10.0, -30.0, -30.0]] * 8
    assert _best_prior([[number, 9, 8, 7] for number in range(8)], scores, wrong)[1] == 0.0
