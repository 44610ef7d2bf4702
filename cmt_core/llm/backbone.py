"""Φ: the frozen LLM, with its keys and values readable before rotary and writable as a cache.

A token's keys and values of all layers are one row x of X numbers, laid out (L, K then V, H, d); keys stand before rotary
(behind the key norm of families that have one, such as Qwen3), so that a memory can be placed at any position later.
Which LLMs can be read so is decided by their parts, not by a list of names: families.py.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cmt_core.errors import ModelSourceError, one_line
from cmt_core.llm.cpu_kernels import grouped_masks, is_grouped, pack, tune_for_cpu
from cmt_core.llm.families import (
    NO_ROTARY,
    ProbeResult,
    check_computation,
    check_parts,
    norms_heads_first,
    rotary_kinds,
    sliding_windows,
)
from cmt_core.llm.kv_shape import KVShape
from cmt_core.llm.lean_layers import LeanLayers, Watch
from cmt_core.llm.loading import loading_alone
from cmt_core.llm.placed_cache import PlacedCache

__all__ = ["Backbone", "KVShape", "PlacedCache", "pick_device", "pick_dtype"]

_log = logging.getLogger(__name__)

_PROBE_TOKENS = 12
_LEAN_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}


class Backbone:
    """The frozen LLM Φ. Its parameters never get a gradient; `fingerprint` proves that they did not change."""

    def __init__(self, model: Any, tokenizer: Any, lean: LeanLayers | None = None) -> None:
        """`lean` are the model's layers as `tune_for_cpu` gave them; they are used when they compute what the model does.

        Raises UnsupportedModelError when the family's keys and values can't be read and written here.
        """
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
        self._watches: list[Watch] = []
        self._lean: LeanLayers | None = None
        check_computation(model, self._probed)
        if lean is not None and self._agrees(lean):
            self._lean = lean
        elif lean is not None:
            pack(self.model)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Backbone:
        """Loads a model folder in transformers' layout, in the device's fastest type unless `dtype` is given.

        Raises ModelSourceError or UnsupportedModelError.
        """
        transformers_logging.disable_progress_bar()
        kind = dtype or pick_dtype(device)
        with loading_alone():
            return cls._loaded(folder, device, kind)

    @classmethod
    def _loaded(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Backbone:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelSourceError(f"model folder {folder} can't be loaded: {one_line(error)}") from None
        model.to(device)
        check_parts(model)
        return cls(model, tokenizer, tune_for_cpu(model.eval()) if device.type == "cpu" else None)

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
        keys: list[Tensor] = []
        values: list[Tensor] = []
        with self._watching(Watch(keys=keys, values=values)):
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
            if torch.is_grad_enabled():
                cache.update(turned.transpose(1, 2), values.transpose(1, 2), layer)
                continue
            kept_keys, kept_values = cache.add_layer(x, self.shape.heads, S, self.shape.head_dim)
            kept_keys.copy_(turned.transpose(1, 2))
            kept_values.copy_(values.transpose(1, 2))
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
        if self._lean is not None and not torch.is_grad_enabled() and self._lean.current:
            return self._lean(ids, positions, masks, cache, self._watches)
        with self._hooked():
            out = self.model.model(
                input_ids=ids, position_ids=positions, attention_mask=masks, past_key_values=cache, use_cache=True
            )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _probed(self, ids: Tensor) -> ProbeResult:
        """What `check_computation` compares with the model's own."""
        nothing = torch.zeros(0, self.shape.width, dtype=self.dtype, device=self.device)
        x, deepest, hidden = self.read_at_depth(ids, torch.ones_like(ids), nothing, self.shape.layers)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        return ProbeResult(self.cache(x, positions), deepest, hidden, self.logits(hidden))

    @torch.no_grad()
    def _agrees(self, lean: LeanLayers) -> bool:
        """Whether lean layers give the model's own last hidden states of some tokens behind others."""
        ids = torch.arange(1, _PROBE_TOKENS + 1, device=self.device)[None] * 11 % self.model.config.vocab_size
        prefix = self.read(ids, torch.ones_like(ids), torch.zeros(0, self.shape.width, dtype=self.dtype))[0]
        _, own = self.read_with_hidden(ids, torch.ones_like(ids), prefix)
        self._lean = lean
        try:
            _, ours = self.read_with_hidden(ids, torch.ones_like(ids), prefix)
        except RuntimeError as error:  # a kernel that this CPU or this build of PyTorch does not have
            _log.warning("the model's own layers are used: %s", one_line(error))
            return False
        finally:
            self._lean = None
        return bool((ours - own).float().norm() <= _LEAN_TOLERANCE[self.dtype] * own.float().norm())

    @contextmanager
    def _watching(self, watch: Watch) -> Iterator[None]:
        self._watches.append(watch)
        try:
            yield
        finally:
            self._watches.remove(watch)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Lets the model's own forward pass fill the watches."""
        handles = [handle for watch in self._watches for handle in self._hooks(watch)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, watch: Watch) -> Iterator[Any]:
        def appending(kept: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: kept.append(_flat(output, self._heads_first))

        body = self.model.model
        for number, layer in enumerate(body.layers):
            if number in watch.layers:
                yield layer.input_layernorm.register_forward_pre_hook(
                    lambda module, inputs: watch.inputs.append(inputs[0])
                )
            for kind, kept in (("q", watch.queries), ("k", watch.keys)):
                if kept is not None:
                    yield _before_rotary(layer.self_attn, kind).register_forward_hook(appending(kept))
            if watch.values is not None:
                yield layer.self_attn.v_proj.register_forward_hook(appending(watch.values))
        if len(body.layers) in watch.layers:
            yield body.norm.register_forward_hook(appending(watch.inputs))

    @contextmanager
    def capture_queries(self) -> Iterator[list[Tensor]]:
        """Collects every layer's queries before rotary, each (B, Q, heads * d), of the forward passes inside."""
        captured: list[Tensor] = []
        with self._watching(Watch(queries=captured)):
            yield captured

    def attention(self, layer: int, queries: Tensor, keys: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """A layer's attention (B, heads, S) of one query each, before rotary (B, heads * d), over placed keys (B, H, S, d).

        positions (B,) are the queries', seen (B, S) says which keys exist.
        """
        B, H, S, d = keys.shape
        turn = self._rotary(queries, positions[:, None], self._rotary_kinds[layer])
        turned = _turn(queries.view(B, 1, -1, d), turn)[:, 0]  # (B, heads, d)
        grouped = turned.view(B, H, -1, d) @ keys.transpose(-1, -2)  # (B, H, heads / H, S)
        scores = grouped.float().reshape(B, -1, S) * d**-0.5
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
        watch = Watch(layers=frozenset(layers))
        with self._watching(watch):
            yield watch.inputs


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
