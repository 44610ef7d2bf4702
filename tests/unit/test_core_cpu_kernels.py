"""On a CPU the LLM runs on packed weights and grouped heads, and computes what it computed before."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from cmt_core.llm.backbone import Backbone
from cmt_core.llm.cpu_kernels import is_grouped, keep_freed_memory, tune_for_cpu
from cmt_core.llm.lean_layers import _Product, packs
from tests.unit.test_core_families import FAMILIES, random_model

needs_onednn = pytest.mark.skipif(
    not packs(torch.bfloat16), reason="this CPU or this PyTorch packs nothing in bfloat16"
)


def both(name: str, dtype: torch.dtype) -> tuple[Backbone, Backbone]:
    """A stock random model of a family, and the same one tuned."""
    stock = random_model(name, dtype)
    tuned = copy.deepcopy(stock)
    return Backbone(stock, None), Backbone(tuned, None, tune_for_cpu(tuned))


def asked(backbone: Backbone, Q: int) -> torch.Tensor:
    """Last hidden states of Q tokens behind 20 cached columns, of which each of 3 rows sees other ones."""
    generator = torch.Generator().manual_seed(Q)
    x = torch.randn(3, 20, backbone.shape.width, generator=generator).to(backbone.dtype)
    positions = torch.arange(20).expand(3, -1)
    seen = torch.rand(3, 20, generator=generator) > 0.3
    causal = torch.ones(Q, Q, dtype=torch.bool).tril()
    attend = torch.cat([seen[:, None].expand(3, Q, 20), causal.expand(3, Q, Q)], dim=-1)[:, None]
    ids = torch.randint(2, backbone.model.config.vocab_size, (3, Q), generator=generator)
    return backbone.forward(ids, (20 + torch.arange(Q)).expand(3, -1), attend, backbone.cache(x, positions))


def calls(backbone: Backbone) -> list[str]:
    """Notes from now on which of the model's own layers are called."""
    called: list[str] = []
    for layer in backbone.model.model.layers:
        layer.register_forward_pre_hook(lambda module, inputs: called.append(type(module).__name__))
    return called


@torch.no_grad()
@pytest.mark.parametrize("Q", [1, 9, 40])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_tuned_model_gives_the_stock_models_hidden_states(name: str, Q: int) -> None:
    stock, tuned = both(name, torch.float32)
    assert is_grouped(tuned.model)
    assert not is_grouped(stock.model)
    called = calls(tuned)
    torch.testing.assert_close(asked(tuned, Q), asked(stock, Q), atol=2e-4, rtol=1e-3)
    assert bool(called) == (name in ("Gemma3", "SmolLM3")), "lean layers take the place of the common kind"


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral-sliding"])
def test_lean_layers_in_bfloat16_are_within_its_rounding(name: str) -> None:
    stock, tuned = both(name, torch.bfloat16)
    ours, theirs = asked(tuned, 9).float(), asked(stock, 9).float()
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Qwen2-mixed", "Qwen3"])
def test_what_is_captured_within_lean_layers_is_what_the_models_own_layers_show(name: str) -> None:
    stock, tuned = both(name, torch.float32)
    ids = torch.randint(2, 120, (2, 11), generator=torch.Generator().manual_seed(4))
    prefix = torch.randn(5, stock.shape.width, generator=torch.Generator().manual_seed(5))
    seen = []
    for backbone in (stock, tuned):
        with backbone.capture_queries() as queries:
            rows, source, last = backbone.read_at_depth(ids, torch.ones_like(ids), prefix, 1)
        assert len(queries) == backbone.shape.layers
        inputs = backbone.layer_inputs(ids, torch.ones_like(ids), prefix)
        seen.append([rows, source, last, inputs, *queries])
        assert not backbone._watches
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("change", ["weight", "norm", "embedding"])
def test_a_model_that_was_changed_computes_with_its_own_weights(change: str) -> None:
    _, tuned = both("Llama", torch.float32)
    before, called = asked(tuned, 3), calls(tuned)
    layer = tuned.model.model.layers[0]
    {"weight": layer.mlp.up_proj, "norm": tuned.model.model.norm, "embedding": tuned.model.model.embed_tokens}[
        change
    ].weight.mul_(1.5)
    assert not torch.allclose(asked(tuned, 3), before)
    assert called


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_packed_products_add_bias_and_residual_as_plain_ones_do(bias: bool) -> None:
    """In float32, which every CPU packs."""
    layer = torch.nn.Linear(32, 48, bias=bias)
    plain = _Product.of([layer])
    packed = replace(plain, packed=torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()))
    for rows in (1, 7, 70):
        x, residual = torch.randn(rows, 32), torch.randn(rows, 48)
        torch.testing.assert_close(packed(x), layer(x))
        torch.testing.assert_close(plain(x), layer(x))
        expected = residual + layer(x)
        torch.testing.assert_close(packed.added_to(residual.clone(), x), expected)
        torch.testing.assert_close(plain.added_to(residual.clone(), x), expected)


def unusual(name: str) -> Any:
    """A random Llama of which a part computes otherwise."""
    model = random_model("Llama")
    layer = model.model.layers[1]
    if name == "activation":
        layer.mlp.act_fn = torch.nn.GELU()
    elif name == "norm":
        layer.input_layernorm = torch.nn.LayerNorm(32)
    elif name == "another part":
        layer.adapter = torch.nn.Linear(32, 32)
    elif name == "scaled residual":  # the same parts, and another sum of them
        forward = layer.mlp.forward
        layer.mlp.forward = lambda x: 0.5 * forward(x)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", ["activation", "norm", "another part", "scaled residual"])
def test_a_layer_that_is_not_understood_is_computed_by_the_model_itself(name: str) -> None:
    stock, model = unusual(name), unusual(name)
    tuned = Backbone(model, None, tune_for_cpu(model))
    called = calls(tuned)
    torch.testing.assert_close(asked(tuned, 5), asked(Backbone(stock, None), 5), atol=2e-4, rtol=1e-3)
    assert called


@torch.no_grad()
def test_a_cache_is_written_in_place_behind_its_context_and_grows_beyond_its_room() -> None:
    _, tuned = both("Llama", torch.float32)
    x = torch.randn(1, 20, tuned.shape.width, generator=torch.Generator().manual_seed(6))
    cache = tuned.cache(x, torch.arange(20)[None])
    at = cache.layers[0].keys.data_ptr()
    ids = torch.randint(2, 120, (1, 150), generator=torch.Generator().manual_seed(7))
    causal = torch.ones(150, 150, dtype=torch.bool).tril()
    whole = torch.cat([torch.ones(150, 20, dtype=torch.bool), causal], dim=1)[None, None]
    expected = tuned.forward(ids, 20 + torch.arange(150)[None], whole, tuned.cache(x, torch.arange(20)[None]))
    got = []
    for start, end in ((0, 30), (30, 40), (40, 149), (149, 150)):
        part = whole[:, :, start:end, : 20 + end]
        got.append(tuned.forward(ids[:, start:end], 20 + torch.arange(start, end)[None], part, cache))
        assert (cache.layers[0].keys.data_ptr() == at) == (end <= 40)
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=2e-4, rtol=1e-3)
    cache.forget_after(40)
    again = tuned.forward(ids[:, 20:30], 20 + torch.arange(20, 30)[None], whole[:, :, 20:30, :50], cache)
    torch.testing.assert_close(again, expected[:, 20:30], atol=2e-4, rtol=1e-3)


@needs_onednn
@torch.no_grad()
def test_packed_bfloat16_weights_give_the_same_products() -> None:
    stock, tuned = both("Llama", torch.bfloat16)
    for name, layer in stock.model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            for rows in (1, 40):
                x = torch.randn(2, rows, layer.in_features).bfloat16()[
                    :, ::2
                ]  # not contiguous, as slices of states are
                ours = tuned.model.get_submodule(name)(x)
                torch.testing.assert_close(ours, functional.linear(x, layer.weight, layer.bias), rtol=0.02, atol=0.02)


def test_a_tuned_model_keeps_its_fingerprint_and_gives_gradients_to_its_input() -> None:
    stock, tuned = both("Llama", torch.bfloat16)
    assert tuned.fingerprint() == stock.fingerprint()
    assert gradient(tuned).isfinite().all()
    torch.testing.assert_close(gradient(tuned), gradient(stock), rtol=0.1, atol=0.02)


@needs_onednn
@torch.no_grad()
def test_a_copy_that_is_trained_further_computes_with_its_own_weights() -> None:
    _, tuned = both("Llama", torch.bfloat16)
    copied = copy.deepcopy(tuned.model)
    before = copied.lm_head(torch.ones(1, 32).bfloat16())
    torch.testing.assert_close(before, tuned.model.lm_head(torch.ones(1, 32).bfloat16()))
    copied.lm_head.weight.add_(1)
    changed = copied.lm_head(torch.ones(1, 32).bfloat16())
    torch.testing.assert_close(changed - before, torch.full_like(before, 32), rtol=0.05, atol=1)
    torch.testing.assert_close(tuned.model.lm_head(torch.ones(1, 32).bfloat16()), before)


def gradient(backbone: Backbone) -> torch.Tensor:
    x = torch.randn(1, 6, backbone.shape.width, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    attend = torch.ones(1, 1, 2, 8, dtype=torch.bool).tril(diagonal=6)
    cache: Any = backbone.cache(x, torch.arange(6)[None])
    hidden = backbone.forward(torch.tensor([[3, 4]]), torch.tensor([[6, 7]]), attend, cache)
    (given,) = torch.autograd.grad(hidden.float().square().mean(), x)
    return given


@pytest.mark.parametrize(
    ("variable", "told"), [(None, True), ("MALLOC_TRIM_THRESHOLD_", False), ("GLIBC_TUNABLES", False)]
)
def test_freed_memory_is_kept_unless_whoever_started_the_process_has_decided(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, told: bool
) -> None:
    options: list[int] = []

    class CLibrary:
        @staticmethod
        def mallopt(option: int, value: int) -> None:
            assert value > 0
            options.append(option)

    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("ctypes.CDLL", lambda name: CLibrary)
    keep_freed_memory.__wrapped__()
    assert bool(options) == told
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # a C library without it, such as musl
    keep_freed_memory.__wrapped__()


@torch.no_grad()
def test_a_kernel_that_this_machine_lacks_leaves_the_model_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be tried on every kind of CPU must not keep a model from being loaded on one."""

    def lacking(*_: object) -> torch.Tensor:
        raise RuntimeError("no such kernel here")

    monkeypatch.setattr(_Product, "added_to", lacking)
    stock, tuned = both("Llama", torch.float32)
    called = calls(tuned)
    torch.testing.assert_close(asked(tuned, 9), asked(stock, 9), atol=2e-4, rtol=1e-3)
    assert called
