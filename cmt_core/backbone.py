"""Φ: the frozen LLM, with its keys and values readable before rotary and writable as a cache.

A token's keys and values of all layers are one row x of X numbers, laid out (L, K then V, H, d); keys stand before rotary
(behind the key norm of families that have one, such as Qwen3), so that a memory can be placed at any position later.
Which LLMs can be read so is decided by their parts, not by a list of names: backbone_family.py.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from cmt_core.backbone_family import (
    NO_ROTARY,
    check_computation,
    check_parts,
    norms_heads_first,
    rotary_kinds,
    sliding_windows,
)
from cmt_core.cpu_kernels import grouped_masks, is_grouped, tune_for_cpu
from cmt_core.errors import ModelSourceError, one_line

__all__ = ["Backbone", "KVShape", "PlacedCache", "pick_device", "pick_dtype"]


@dataclass(frozen=True, slots=True)
class KVShape:
    """L layers, H key/value heads of width d."""

    layers: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """X, the numbers of all layers' keys and values for one token."""
        return self.layers * 2 * self.heads * self.head_dim


class PlacedCache(DynamicCache):  # type: ignore[misc]
    """A key/value cache that knows the position of each of its columns, (B, S), as sliding windows need them."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.positions = positions

    def open_columns(self, positions: Tensor) -> Tensor:
        """Notes that tokens at `positions` (B, Q) come next, and gives the positions of all columns (B, S + Q)."""
        self.positions = torch.cat([self.positions, positions], dim=1)
        return self.positions

    def forget_after(self, columns: int) -> None:
        """Is again as it was when it had `columns` columns."""
        self.crop(columns - self.positions.shape[1])  # how many to remove, below 0
        self.positions = self.positions[:, :columns]


class Backbone:
    """The frozen LLM Φ. Its parameters never get a gradient; `fingerprint` proves that they did not change."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Raises UnsupportedModelError when the family's keys and values can't be read and written here."""
        check_parts(model)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = KVShape(config.num_hidden_layers, config.num_key_value_heads, head_dim)
        self.width: int = config.hidden_size
        self.query_heads: int = config.num_attention_heads
        self._windows = sliding_windows(config)
        self._rotary_kinds = rotary_kinds(model)
        self._heads_first = norms_heads_first(model)
        check_computation(self)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Backbone:
        """Loads a model folder in transformers' layout, in the device's fastest type unless `dtype` is given.

        Raises ModelSourceError or UnsupportedModelError.
        """
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or pick_dtype(device), attn_implementation="sdpa"
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelSourceError(f"model folder {folder} can't be loaded: {one_line(error)}") from None
        model.to(device)
        if device.type == "cpu":
            tune_for_cpu(model)
        return cls(model, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def fingerprint(self, dtype: torch.dtype | None = None) -> str:
        """Hex sha256 over all weights, by name; in `dtype` when given, so that it does not depend on the loaded type."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().to(dtype or tensor.dtype).cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def read(self, ids: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
        """Reads documents behind a prefix and returns all layers' keys (before rotary) and values.

        ids, mask (B, T); prefix (p, X) -> (B, T, X). Document tokens stand at positions p, p + 1, ...
        """
        return self.read_with_hidden(ids, mask, prefix)[0]

    def read_at_depth(self, ids: Tensor, mask: Tensor, prefix: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `read`, with the hidden states (B, T, D) that `layer` gets (layer L: the last ones), and the last ones."""
        with self.capture_inputs([layer]) as captured:
            rows, last = self.read_with_hidden(ids, mask, prefix)
        return rows, captured[0], last

    def read_with_hidden(self, ids: Tensor, mask: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """As `read`, and the last hidden states (B, T, D) of the same pass."""
        B, T = ids.shape
        p = prefix.shape[0]
        positions = torch.arange(p, p + T, device=ids.device).expand(B, T)
        seen = torch.cat([mask.new_ones(B, p), mask], dim=1).bool()  # (B, p + T)
        causal = torch.ones(T, p + T, dtype=torch.bool, device=ids.device).tril(diagonal=p)
        attend = (seen[:, None, :] & causal)[:, None]  # (B, 1, T, p + T)
        cache = self.cache(prefix.expand(B, p, -1), torch.arange(p, device=ids.device).expand(B, p))
        with self._capture_keys_values() as (keys, values):
            hidden = self._run(ids, positions, attend, cache)
        # per layer (B, T, H * d) for K and V -> (B, T, L * 2 * H * d)
        return torch.cat([part for layer in zip(keys, values, strict=True) for part in layer], dim=-1), hidden

    def cache(self, x: Tensor, positions: Tensor) -> PlacedCache:
        """A key/value cache from rows x (B, S, X) with keys before rotary, rotated to `positions` (B, S)."""
        B, S, _ = x.shape
        parts = x.view(B, S, self.shape.layers * 2, self.shape.heads, self.shape.head_dim).unbind(dim=2)
        turns = {kind: self._rotary(x, positions, kind) for kind in set(self._rotary_kinds)}
        cache = PlacedCache(positions)
        # unbind, not a slice per layer: each slice's gradient would fill a tensor of all layers
        for layer, (keys, values) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            turned = _turn(keys, turns[self._rotary_kinds[layer]])
            cache.update(turned.transpose(1, 2), values.transpose(1, 2), layer)
        return cache

    def _rotary(self, like: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
        """The LLM's own rotary of a kind of layers: cos and sin (B, S, 1, d) for positions (B, S); None where nothing turns."""
        if kind == NO_ROTARY:
            return None
        named = {"layer_type": kind} if kind else {}
        cos, sin = self.model.model.rotary_emb(like, position_ids=positions, **named)
        return cos.unsqueeze(2), sin.unsqueeze(2)

    def forward(self, ids: Tensor, positions: Tensor, attend: Tensor, cache: PlacedCache) -> Tensor:
        """Last hidden states (B, Q, D) of ids (B, Q) that follow `cache`; attend (B, 1, Q, S + Q) is true where seen.

        The cache is extended by the Q tokens.
        """
        return self._run(ids, positions, attend, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of hidden states (..., D)."""
        scores: Tensor = self.model.lm_head(hidden)
        return scores

    def _run(self, ids: Tensor, positions: Tensor, attend: Tensor, cache: PlacedCache) -> Tensor:
        columns = cache.open_columns(positions)
        masks = self._windows.masks(attend, positions, columns) if self._windows else attend
        if is_grouped(self.model):
            masks = grouped_masks(masks, self.query_heads // self.shape.heads, self.dtype)
        out = self.model.model(
            input_ids=ids, position_ids=positions, attention_mask=masks, past_key_values=cache, use_cache=True
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    @contextmanager
    def capture_queries(self) -> Iterator[list[Tensor]]:
        """Collects every layer's queries before rotary, each (B, Q, heads * d), of the forward passes inside."""
        captured: list[Tensor] = []
        handles = [
            _before_rotary(layer.self_attn, "q").register_forward_hook(
                lambda module, inputs, output: captured.append(_flat(output, self._heads_first))
            )
            for layer in self.model.model.layers
        ]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def attention(self, layer: int, queries: Tensor, keys: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """A layer's attention (B, heads, S) of one query each, before rotary (B, heads * d), over placed keys (B, H, S, d).

        positions (B,) are the queries', seen (B, S) says which keys exist.
        """
        B, H, S, d = keys.shape
        turn = self._rotary(queries, positions[:, None], self._rotary_kinds[layer])
        turned = _turn(queries.view(B, 1, -1, d), turn)[:, 0]  # (B, heads, d)
        grouped = turned.view(B, H, -1, d).float() @ keys.float().transpose(-1, -2)  # (B, H, heads / H, S)
        scores = grouped.reshape(B, -1, S) * d**-0.5
        probabilities: Tensor = scores.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1)
        return probabilities

    def layer_inputs(self, ids: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
        """What every layer gets (B, T, L, D) while documents ids, mask (B, T) are read behind prefix (p, X)."""
        with self.capture_inputs(range(self.shape.layers)) as captured:
            self.read(ids, mask, prefix)
        return torch.stack(captured, dim=2)

    def project(self, hidden: Tensor) -> Tensor:
        """Keys before rotary and values (..., X) that every layer's own norm and projections make of its input (..., L, D)."""
        parts: list[Tensor] = []
        for number, layer in enumerate(self.model.model.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden[..., number, :])
            keys = attention.k_proj(normed)
            if hasattr(attention, "k_norm"):
                keys = attention.k_norm(keys.unflatten(-1, (self.shape.heads, self.shape.head_dim))).flatten(-2)
            parts += [keys, attention.v_proj(normed)]
        return torch.cat(parts, dim=-1)

    @contextmanager
    def capture_inputs(self, layers: Iterable[int]) -> Iterator[list[Tensor]]:
        """Collects what each of the layers gets, (B, T, D), in a forward pass inside; layer L gets the last hidden states."""
        captured: list[Tensor] = []
        handles = []
        for number in layers:
            if number < self.shape.layers:
                norm = self.model.model.layers[number].input_layernorm
                handles.append(norm.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0])))
            else:
                norm = self.model.model.norm
                handles.append(norm.register_forward_hook(lambda module, inputs, output: captured.append(output)))
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _capture_keys_values(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Collects all layers' keys, and their values, each (B, T, H * d), as they come: a norm of keys may come after values."""
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def on_key(module: nn.Module, inputs: Any, output: Tensor) -> None:
            keys.append(_flat(output, self._heads_first))

        def on_value(module: nn.Module, inputs: Any, output: Tensor) -> None:
            values.append(output)

        handles = []
        for layer in self.model.model.layers:
            handles.append(_before_rotary(layer.self_attn, "k").register_forward_hook(on_key))
            handles.append(layer.self_attn.v_proj.register_forward_hook(on_value))
        try:
            yield keys, values
        finally:
            for handle in handles:
                handle.remove()


def _before_rotary(attention: nn.Module, kind: str) -> nn.Module:
    """The module whose output goes into rotary: the norm of queries or keys (`kind` q or k) where there is one."""
    module: nn.Module = getattr(attention, f"{kind}_norm", None) or getattr(attention, f"{kind}_proj")
    return module


def _flat(output: Tensor, heads_first: bool) -> Tensor:
    """(B, T, heads * d) of a projection's output, or of a head norm's (B, T, heads, d) or (B, heads, T, d)."""
    if output.ndim == 4:
        return (output.transpose(1, 2) if heads_first else output).flatten(-2)
    return output


def _turn(heads: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotates heads (B, S, H, d) by halves, as every rotary family of transformers does, or leaves them."""
    if turn is None:
        return heads
    cos, sin = turn
    half = heads.shape[-1] // 2
    turned = torch.cat([-heads[..., half:], heads[..., :half]], dim=-1)
    return heads * cos + turned * sin


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; on a CPU whichever of bfloat16 and float32 multiplies faster.

    CPUs differ here by a factor of ten: with AMX bfloat16 is several times faster than float32, with plain AVX-512 it can be
    half as fast. The answer is measured once per process, in about 50 ms.
    """
    return torch.bfloat16 if device.type != "cpu" else _faster_on_cpu()


@functools.cache
def _faster_on_cpu() -> torch.dtype:
    return min((torch.float32, torch.bfloat16), key=_matmul_seconds)


def _matmul_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        times.append(time.perf_counter() - start)
    return min(times)
