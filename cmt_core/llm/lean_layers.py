"""The frozen LLM's decoder layers on a CPU in few large operations, for families whose layers are the common kind.

transformers computes a layer in some 45 operations behind a dozen modules; for a few rows that costs more than the products
themselves. Here queries, keys and values are one product, the gate and the way up another, residuals are added by the product
before them, and what is elementwise is done in place. A layer is the common kind when it has the common parts, its norms are root
mean squares and its activation is SiLU; whether the whole computes what the model computes is checked where it is loaded
(families.py). Gradients take the model's own way. docs/decisions/0090 has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_core.llm.families import rotary_kinds

__all__ = ["LeanLayers", "Watch", "packs"]

_BODY = ("embed_tokens", "layers", "norm", "rotary_emb")
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_FEW_ROWS = 64  # up to which one call counts more than what it allocates

Masks = Tensor | dict[str, Tensor]


def packs(dtype: torch.dtype) -> bool:
    """Whether matrices of a type are worth packing, and this CPU can: bfloat16 with AVX-512 or better."""
    mkldnn = torch.ops.mkldnn
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return dtype == torch.bfloat16 and available and bool(mkldnn._is_mkldnn_bf16_supported())


@dataclass(slots=True, eq=False)
class Watch:
    """What is wanted from within a forward pass: the inputs (B, Q, D) of some layers (layer L: the last hidden states), all
    queries before rotary (B, Q, heads * d), keys before rotary and values (B, Q, H * d)."""

    layers: frozenset[int] = frozenset()
    inputs: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] | None = None
    keys: list[Tensor] | None = None
    values: list[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class _Product:
    """x @ weight.T + bias for rows x (N, in); packed for oneDNN where it is bfloat16. `weights` are those it was made of."""

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None

    @classmethod
    def of(cls, layers: Sequence[nn.Linear]) -> _Product:
        """One product for several layers that read the same; their own weights become parts of one tensor where nothing is
        packed, so that they are not there twice."""
        weight = torch.cat([one.weight.detach() for one in layers]) if len(layers) > 1 else layers[0].weight.detach()
        biases = [one.bias for one in layers if one.bias is not None]
        bias = torch.cat([one.detach() for one in biases]) if biases else None
        if packs(weight.dtype):
            return cls(weight.new_empty(0), bias, torch.ops.mkldnn._reorder_linear_weight(weight))
        if len(layers) > 1:
            for one, part in zip(layers, torch.split(weight, [one.out_features for one in layers]), strict=True):
                one.weight.data = part
        return cls(weight.t(), bias, None)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return product
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual (N, out) + the product; the residual may be overwritten."""
        if self.packed is not None:
            total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.packed, self.bias, "add")
            return total
        residual.addmm_(x, self.weight)
        return residual if self.bias is None else residual.add_(self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: nn.Module) -> _Norm | None:
        """The norm of a module that computes x / rms(x) * weight, else None."""
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if weight is None or epsilon is None or weight.ndim != 1:
            return None
        norm = cls(weight.detach(), float(epsilon))
        probe = torch.linspace(-2, 3, weight.numel(), dtype=weight.dtype)[None]
        return norm if torch.allclose(module(probe), norm(probe), rtol=2e-2, atol=1e-3) else None

    def __call__(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        if x.numel() <= _FEW_ROWS * width:
            return functional.rms_norm(x, (width,), self.weight, self.epsilon)
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norms.square_().div_(width).add_(self.epsilon).rsqrt_()
        scaled = x * scale if x.dtype == torch.float32 else x.float().mul_(scale).to(x.dtype)
        return scaled.mul_(self.weight)


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    scaling: float
    before_attention: _Norm
    into_heads: _Product  # queries, keys, values
    head_norms: tuple[_Norm, _Norm] | None  # of queries, of keys
    out_of_heads: _Product
    before_mlp: _Norm
    gate_and_up: _Product
    down: _Product


class LeanLayers:
    """A model's embedding, layers and last norm; see `of`. It holds no weights of its own but packed ones."""

    def __init__(self, model: Any, layers: Sequence[_Layer], last: _Norm, fused: Sequence[nn.Module]) -> None:
        config = model.config
        self._embed: Callable[[Tensor], Tensor] = model.model.embed_tokens
        self._rotary: Callable[..., tuple[Tensor, Tensor]] = model.model.rotary_emb
        self._layers, self._last = layers, last
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.fused = fused
        self._weights = [
            one.weight for one in model.modules() if isinstance(getattr(one, "weight", None), nn.Parameter)
        ]
        self._versions = [weight._version for weight in self._weights]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> LeanLayers | None:
        """The layers of a model of the common kind in evaluation; None where one is not understood."""
        body = getattr(model, "model", None)
        if not all(hasattr(body, name) for name in _BODY) or set(rotary_kinds(model)) != {""}:
            return None
        last = _Norm.of(model.model.norm)
        read = [_understood(layer, number, model.config) for number, layer in enumerate(model.model.layers)]
        if last is None or not all(read):
            return None
        made = [build() for build in read if build is not None]
        fused = [getattr(part, name) for layer in model.model.layers for part, name in _fused_parts(layer)]
        return cls(model, made, last, fused)

    @property
    def current(self) -> bool:
        """Whether the model's weights are still those that were read."""
        return all(weight._version == version for weight, version in zip(self._weights, self._versions, strict=True))

    def __call__(self, ids: Tensor, positions: Tensor, masks: Masks, cache: Any, watches: Sequence[Watch]) -> Tensor:
        """Last hidden states (B, Q, D) of ids (B, Q) at positions (B, Q); `cache` is extended by them.

        masks (B, 1, heads / H * Q, S) are added to the scores of the query heads of a group, one below the other.
        """
        B, Q = ids.shape
        hidden = self._embed(ids)
        D = hidden.shape[-1]
        cos, sin = self._rotary(hidden, position_ids=positions)
        turns = cos.unsqueeze(2), _signed(sin).unsqueeze(2)
        hidden = hidden.reshape(B * Q, D)
        for number, layer in enumerate(self._layers):
            _note_input(watches, number, hidden, (B, Q, D))
            mask = masks[layer.kind] if isinstance(masks, dict) else masks
            attended = self._attend(layer, number, layer.before_attention(hidden), turns, mask, cache, watches)
            hidden = layer.out_of_heads.added_to(hidden, attended)
            both = layer.gate_and_up(layer.before_mlp(hidden))
            gate, up = both.chunk(2, dim=-1)
            hidden = layer.down.added_to(hidden, functional.silu(gate, inplace=True) * up)
        hidden = self._last(hidden)
        _note_input(watches, len(self._layers), hidden, (B, Q, D))
        return hidden.view(B, Q, D)

    def _attend(
        self,
        layer: _Layer,
        number: int,
        normed: Tensor,
        turns: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: Any,
        watches: Sequence[Watch],
    ) -> Tensor:
        """What the query heads (B * Q, heads * d) bring from the columns that they see."""
        (B, Q, _, d), heads, H = turns[0].shape, self._heads, self._kv_heads
        rows = layer.into_heads(normed).view(B, Q, heads + 2 * H, d)
        before, values = rows[:, :, : heads + H], rows[:, :, heads + H :]
        if layer.head_norms is not None:
            of_queries, of_keys = layer.head_norms
            before = torch.cat([of_queries(before[:, :, :heads]), of_keys(before[:, :, heads:])], dim=2)
        for watch in watches:
            _note_heads(watch, before, values, heads)
        turned = torch.addcmul(before * turns[0], before.roll(d // 2, -1), turns[1])
        keys, values = cache.update(turned[:, :, heads:].transpose(1, 2), values.transpose(1, 2), number)
        grouped = turned[:, :, :heads].view(B, Q, H, -1, d).permute(0, 2, 3, 1, 4).reshape(B, H, -1, d)
        found = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=layer.scaling)
        return found.view(B, H, -1, Q, d).permute(0, 3, 1, 2, 4).reshape(B * Q, heads * d)


def _understood(layer: Any, number: int, config: Any) -> Callable[[], _Layer] | None:
    """What builds the lean layer, nothing being changed before; None for another kind of layer."""
    if (
        _children(layer) != _LAYER
        or _children(layer.self_attn) - _HEAD_NORMS != _ATTENTION
        or _children(layer.mlp) != _MLP
    ):
        return None
    attention, mlp = layer.self_attn, layer.mlp
    linear = [*(getattr(attention, name) for name in sorted(_ATTENTION)), mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [_Norm.of(layer.input_layernorm), _Norm.of(layer.post_attention_layernorm)]
    names = [name for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    of_heads = [_Norm.of(getattr(attention, name)) for name in names]
    probe = torch.linspace(-3, 3, 16, dtype=torch.float32)
    if not (
        all(type(one) is nn.Linear for one in linear)
        and hasattr(attention, "scaling")
        and None not in (*norms, *of_heads)
        and len(of_heads) in (0, 2)
        and _same_biases(attention.q_proj, attention.k_proj, attention.v_proj)
        and _same_biases(mlp.gate_proj, mlp.up_proj)
        and torch.allclose(mlp.act_fn(probe), functional.silu(probe), atol=1e-6)
    ):
        return None
    kinds = getattr(config, "layer_types", None)

    def build() -> _Layer:
        before_attention, before_mlp = norms
        assert before_attention is not None
        assert before_mlp is not None
        return _Layer(
            kinds[number] if kinds else "full_attention",
            float(attention.scaling),
            before_attention,
            _Product.of([attention.q_proj, attention.k_proj, attention.v_proj]),
            (of_heads[0], of_heads[1]) if of_heads else None,  # type: ignore[arg-type]
            _Product.of([attention.o_proj]),
            before_mlp,
            _Product.of([mlp.gate_proj, mlp.up_proj]),
            _Product.of([mlp.down_proj]),
        )

    return build


def _fused_parts(layer: Any) -> list[tuple[Any, str]]:
    return [
        *((layer.self_attn, name) for name in sorted(_ATTENTION)),
        *((layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")),
    ]


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _same_biases(*layers: nn.Linear) -> bool:
    return len({one.bias is None for one in layers}) == 1


def _signed(sin: Tensor) -> Tensor:
    """sin (..., d) with its first half negative: x * cos + roll(x) * signed is the rotation by halves."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def _note_input(watches: Sequence[Watch], number: int, hidden: Tensor, shape: tuple[int, int, int]) -> None:
    for watch in watches:
        if number in watch.layers:
            watch.inputs.append(hidden.clone().view(shape))  # the residual is overwritten by the next layer


def _note_heads(watch: Watch, before: Tensor, values: Tensor, heads: int) -> None:
    if watch.queries is not None:
        watch.queries.append(before[:, :, :heads].flatten(2))
    if watch.keys is not None and watch.values is not None:
        watch.keys.append(before[:, :, heads:].flatten(2))
        watch.values.append(values.flatten(2))
