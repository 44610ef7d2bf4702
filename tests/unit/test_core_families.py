"""Families of LLMs: memories of tiny random models of each are read as the text itself would be; others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from cmt_core.errors import UnsupportedModelError
from cmt_core.generation.greedy import prefill
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.llm.kv_slots import KVSlots
from cmt_core.reading.alignment import place
from cmt_core.training.batches import attend

SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Mistral-sliding": {"sliding_window": 9},
    "Qwen2": {},
    "Qwen2-mixed": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "Qwen3": {"head_dim": 16},
    "SmolLM3": {"no_rope_layer_interval": 2},
    "Gemma3": {
        "head_dim": 16,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "Qwen3-mixed": {"head_dim": 16, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
}


def random_model(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A model of the family with weights, norms and biases that are not at their neutral start."""
    family = name.split("-")[0]
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config = kind(**{**SMALL, **FAMILIES[name], **more}, attn_implementation="sdpa")
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_read_then_placed_gives_the_logits_of_one_plain_pass(name: str, dtype: torch.dtype) -> None:
    model = random_model(name, dtype)
    backbone = Backbone(model, None)
    p, n, Q = 4, 12, 6
    ids = torch.randint(1, 120, (2, p + n + Q), generator=torch.Generator().manual_seed(1))
    plain = model(input_ids=ids).logits[:, -Q:]
    nothing = torch.zeros(0, backbone.shape.width, dtype=dtype)
    for row in range(2):
        head, text, question = ids[row : row + 1].split([p, n, Q], dim=1)
        prefix = backbone.read(head, torch.ones_like(head), nothing)[0]
        exact = backbone.read(text, torch.ones_like(text), prefix)
        context = place(backbone, prefix, exact[:, None], torch.ones(1, 1, n, dtype=torch.long), n)
        positions = context.next_position[:, None] + torch.arange(Q)
        mask = attend(context.seen, torch.zeros_like(question))
        got = backbone.logits(backbone.forward(question, positions, mask, context.cache))[0]
        if dtype == torch.float32:
            torch.testing.assert_close(got, plain[row], atol=2e-4, rtol=1e-3)
        else:
            assert (got - plain[row]).float().norm() < 0.05 * plain[row].float().norm()


@torch.no_grad()
@pytest.mark.parametrize("name", ["Mistral-sliding", "Qwen3-mixed", "Qwen2", "SmolLM3", "Gemma3"])
def test_a_running_batch_continues_as_the_model_itself(name: str) -> None:
    """Slots keep every column's position, so a sliding window moves on with the answer."""
    model = random_model(name)
    backbone = Backbone(model, None)
    text = torch.randint(1, 120, (1, 20), generator=torch.Generator().manual_seed(2))
    expected = model.generate(text, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 20:]
    nothing = torch.zeros(0, backbone.shape.width)
    exact = backbone.read(text[:, :14], torch.ones(1, 14, dtype=torch.long), nothing)
    context: Context = place(backbone, nothing, exact[:, None], torch.ones(1, 1, 14, dtype=torch.long), 14)
    read = prefill(backbone, context, [text[0, 14:].tolist()])
    slots = KVSlots(backbone.shape, backbone.device, backbone.dtype)
    slots.take(context.cache, 0, read.seen[0], int(read.last[0]) + 1)
    tokens = [int(read.logits[0].argmax())]
    while len(tokens) < 12:
        positions, mask = slots.open_column()
        hidden = backbone.forward(torch.tensor([[tokens[-1]]]), positions, mask, slots)
        tokens.append(int(backbone.logits(hidden[:, -1]).argmax()))
    assert tokens == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "SmolLM3", "Gemma3"])
def test_projecting_layer_inputs_gives_the_rows_that_reading_gives(name: str) -> None:
    model = random_model(name)
    backbone = Backbone(model, None)
    ids = torch.randint(1, 120, (1, 7), generator=torch.Generator().manual_seed(3))
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    inputs = torch.stack(states[: backbone.shape.layers], dim=2)  # (1, 7, L, D)
    rows = backbone.read(ids, torch.ones_like(ids), torch.zeros(0, backbone.shape.width))
    torch.testing.assert_close(backbone.project(inputs), rows, atol=1e-4, rtol=1e-4)
    nothing = torch.zeros(0, backbone.shape.width)
    for layer in (1, backbone.shape.layers):
        _, source, last = backbone.read_at_depth(ids, torch.ones_like(ids), nothing, layer)
        torch.testing.assert_close(source, states[layer], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(source, last)


OTHERS: dict[str, dict[str, Any]] = {
    "GPTNeoX": {},  # fused projections
    "Phi3": {},  # fused projections
    "Cohere": {},  # rotates neighbours instead of halves, and scales the logits
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5},  # squeezes the logits
    "StableLm": {"partial_rotary_factor": 0.5},  # rotates half of each head
}


@pytest.mark.parametrize("family", list(OTHERS))
def test_family_that_computes_otherwise_is_refused_in_one_line(family: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, **OTHERS[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(UnsupportedModelError) as caught:
        Backbone(model, None)
    assert str(caught.value).startswith(f"LLM family {config.model_type!r} is not supported: ")
    assert "\n" not in str(caught.value)


HYBRIDS: dict[str, dict[str, Any]] = {
    "Qwen3Next": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "Qwen3_5": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "FalconH1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 1},
    "Bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "Lfm2": {"full_attn_idxs": [1]},
    "RecurrentGemma": {"attention_window_size": 8, "lru_width": 32},
}


@pytest.mark.parametrize("family", list(HYBRIDS))
def test_hybrid_with_recurrent_layers_is_refused_and_told_why(family: str) -> None:
    kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config = kind(**SMALL, **HYBRIDS[family])
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError) as caught:
        Backbone(model, None)
    message = str(caught.value)
    assert message.startswith(f"LLM family {config.model_type!r} is not supported: it has recurrent layers (")
    assert message.endswith("what they keep of a document is not in its keys and values")


def test_rotary_that_changes_with_length_is_refused() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, rope_parameters=scaling))
    with pytest.raises(UnsupportedModelError, match=r"'llama' is not supported: .*\(dynamic\)"):
        Backbone(model, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILIES))
def test_families_fit_on_cuda_in_bfloat16(name: str) -> None:
    backbone = Backbone(random_model(name, torch.bfloat16).cuda(), None)
    ids = torch.randint(1, 120, (2, 9)).cuda()
    nothing = torch.zeros(0, backbone.shape.width, dtype=torch.bfloat16).cuda()
    assert backbone.read(ids, torch.ones_like(ids), nothing).isfinite().all()
