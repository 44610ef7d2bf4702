"""On a CPU the LLM runs on packed weights and grouped heads, and computes what it computed before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from cmt_core.backbone import Backbone
from cmt_core.cpu_kernels import is_grouped, tune_for_cpu
from tests.unit.test_core_families import FAMILIES, random_model

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN, so nothing is packed"
)


def both(name: str, dtype: torch.dtype) -> tuple[Backbone, Backbone]:
    """A stock random model of a family, and the same one tuned."""
    stock = random_model(name, dtype)
    tuned = copy.deepcopy(stock)
    tune_for_cpu(tuned)
    return Backbone(stock, None), Backbone(tuned, None)


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


@torch.no_grad()
@pytest.mark.parametrize("Q", [1, 9])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_tuned_model_gives_the_stock_models_hidden_states(name: str, Q: int) -> None:
    stock, tuned = both(name, torch.float32)
    assert is_grouped(tuned.model)
    assert not is_grouped(stock.model)
    torch.testing.assert_close(asked(tuned, Q), asked(stock, Q))


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
