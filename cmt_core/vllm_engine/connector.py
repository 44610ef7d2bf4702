"""vLLM's KV connector for packed memories: nothing of vLLM is patched, it loads this class by its name.

    KVTransferConfig(
        kv_connector="MemoryConnector", kv_connector_module_path="cmt_core.vllm_engine.connector", kv_role="kv_consumer",
        kv_load_failure_policy="fail", kv_connector_extra_config={"checkpoint": FOLDER},
    )

A request's prompt is S placeholder tokens, one for each column of its memories, then the question; its `kv_transfer_params` hold
`{"cmt": PackedContext.to_params()}`, and its cache salt is the context's. vLLM makes two objects of the class, and calls

- in the scheduler: `get_num_new_matched_tokens` (S columns need not be computed), `update_state_after_alloc` (these are their
  pages; again after a preemption), and once a step `build_connector_meta`, which sends both to the workers
- in every worker, before a step's forward pass: `bind_connector_metadata`, `start_load_kv` (memories are decoded, turned and
  written through each attention layer's own cache update), and after it `get_block_ids_with_load_errors`

A context that can't be loaded fails its request alone: its pages are reported, and vLLM's policy is `fail`. Nothing is raised
here once the engine runs, since that would end the engine; and no answer is ever made of placeholders.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import vllm
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from cmt_core.errors import CoreError
from cmt_core.memory.packed_context import PackedContext
from cmt_core.vllm_engine.loading import DEFAULT_DECODED_BYTES, ContextLoader, PlacedColumns
from cmt_core.vllm_engine.placeholders import PARAMS_KEY, PLACEHOLDER
from cmt_core.vllm_engine.versions import require_supported

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

__all__ = ["MemoryConnector"]

_log = logging.getLogger(__name__)
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(slots=True)
class _Load:
    """Columns from `first` on that go into a request's pages; without a context, pages that must be reported as not loaded."""

    request_id: str
    context: PackedContext | None
    first: int
    block_ids: list[int]


@dataclass(slots=True)
class _Loads(KVConnectorMetadata):  # type: ignore[misc]
    """What the workers load before a step."""

    loads: list[_Load] = field(default_factory=list)


class MemoryConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """See the module. `kv_connector_extra_config`: checkpoint (a folder), bits_per_token, decoded_bytes (of the workers' LRU).

    Raises RuntimeError, at the engine's start, for another vLLM or configuration than it works with.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        require_supported(vllm.__version__)
        _check(vllm_config, kv_cache_config)
        self._block_size = int(vllm_config.cache_config.block_size)
        self._contexts: dict[str, PackedContext | None] = {}  # of unfinished requests; None: it can't be read
        self._unread: dict[str, int] = {}  # of those that can't be read: the columns that the cache has of them
        self._planned: dict[str, _Load] = {}
        self._failed: set[int] = set()
        self._layers: list[Any] = []
        self._loader = self._made_loader() if role == KVConnectorRole.WORKER else None

    # scheduler

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many of the request's S columns are not in pages yet (the prefix cache may have some), and: before the step."""
        params = request.kv_transfer_params
        if not params or PARAMS_KEY not in params:
            return 0, False
        if request.request_id not in self._contexts:
            self._contexts[request.request_id] = _context_of(request)
        context = self._contexts[request.request_id]
        if request.skip_reading_prefix_cache:
            # asked for with prompt log-probabilities; it would switch loading off, too, and placeholders would be computed
            request.skip_reading_prefix_cache = False
        if context is None:
            # one column more than the cache has counts as loaded, in a page of its own: for that the request fails
            self._unread[request.request_id] = num_computed_tokens
            return int(num_computed_tokens + 1 < request.num_tokens), False
        return max(0, context.columns - num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Notes the pages that the columns go into."""
        if num_external_tokens <= 0 or request.request_id not in self._contexts:
            return
        context, block_ids = self._contexts[request.request_id], list(blocks.get_block_ids()[0])
        first = self._unread[request.request_id] if context is None else context.columns - num_external_tokens
        load = _Load(request.request_id, context, first, block_ids)
        self._planned[request.request_id] = load

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """What the workers load before this step."""
        loads, self._planned = list(self._planned.values()), {}
        return _Loads(loads)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forgets a request; its pages may go at once."""
        self._contexts.pop(request.request_id, None)
        self._unread.pop(request.request_id, None)
        self._planned.pop(request.request_id, None)
        return False, None

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """As `request_finished`."""
        return self.request_finished(request, [])

    # worker

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Called once the pages are there: the first decoding, which is slow, happens before the first question."""
        if self._loader is not None:
            self._loader.warm_up()

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Writes all columns of this step's new requests into their pages."""
        metadata = self._get_connector_metadata()
        if not isinstance(metadata, _Loads) or not metadata.loads:
            return
        ready: list[tuple[_Load, PlacedColumns]] = []
        for load in metadata.loads:
            try:
                ready.append((load, self._columns(load)))
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not leave this method: the engine would end
                self._fail(load, error)
        if not ready:
            return
        try:
            self._write(forward_context.no_compile_layers, ready)
        except Exception as error:  # noqa: BLE001 - as above
            for load, _ in ready:
                self._fail(load, error)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """The pages of requests whose columns could not be loaded."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: all layers are written before the step."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""

    def _made_loader(self) -> ContextLoader:
        options = dict(self._kv_transfer_config.kv_connector_extra_config)
        model = self._vllm_config.model_config
        try:
            return ContextLoader.of(
                Path(options["checkpoint"]),
                model.hf_text_config,
                torch.device(self._vllm_config.device_config.device_type),
                model.dtype,
                bits_per_token=options.get("bits_per_token"),
                decoded_bytes=int(options.get("decoded_bytes", DEFAULT_DECODED_BYTES)),
            )
        except (CoreError, ValueError, KeyError) as error:
            raise RuntimeError(f"memories can't be read by vLLM: {error}") from None

    def _columns(self, load: _Load) -> PlacedColumns:
        if load.context is None:
            raise ValueError("its packed context can't be read")
        return cast(ContextLoader, self._loader).columns(load.context, load.first)

    def _fail(self, load: _Load, error: Exception) -> None:
        """Reports the pages that the columns would have gone into: vLLM fails the request, and forgets the pages."""
        _log.warning("the memories of request %s could not be loaded: %s", load.request_id, error)
        self._failed.update(load.block_ids[load.first // self._block_size :])

    def _write(self, layers: dict[str, Any], ready: Sequence[tuple[_Load, PlacedColumns]]) -> None:
        """Into the pages of every layer, all requests at once."""
        self._layers = self._layers or _attention_layers(layers, cast(ContextLoader, self._loader).shape.layers)
        keys, values = (torch.cat([getattr(columns, name) for _, columns in ready]) for name in ("keys", "values"))
        slots = torch.cat([self._slots(load, len(columns.keys)) for load, columns in ready]).to(keys.device)
        for number, layer in self._layers:
            own = _own_heads(layer, keys.shape[2])
            cache = layer.kv_cache[0] if isinstance(layer.kv_cache, list) else layer.kv_cache
            part = keys[:, number, own].contiguous(), values[:, number, own].contiguous()
            layer.impl.do_kv_cache_update(layer, *part, cache, slots)

    def _slots(self, load: _Load, count: int) -> Tensor:
        """The places (S,) in pages of a request's columns from `first` on."""
        columns = torch.arange(load.first, load.first + count)
        blocks = torch.tensor(load.block_ids)
        return blocks[columns // self._block_size] * self._block_size + columns % self._block_size


def _check(config: VllmConfig, pages: KVCacheConfig) -> None:
    """Raises RuntimeError for a configuration with which memories would be read wrongly."""
    if config.kv_transfer_config.kv_load_failure_policy != "fail":
        raise RuntimeError("kv_load_failure_policy must be `fail`: `recompute` would answer from placeholders")
    if len(pages.kv_cache_groups) > 1:
        raise RuntimeError("set disable_hybrid_kv_cache_manager: memories need all layers' pages in one group")
    if config.speculative_config is not None:
        raise RuntimeError(
            "speculative decoding does not go with memories: a draft model has no keys and values of them"
        )


def _context_of(request: Request) -> PackedContext | None:
    """The request's context, None when it can't be read or is not what the prompt's placeholders stand for."""
    try:
        context = PackedContext.from_params(request.kv_transfer_params[PARAMS_KEY])
        prompt = request.prompt_token_ids or []
        if not 0 < context.columns < len(prompt) or any(id != PLACEHOLDER for id in prompt[: context.columns]):
            raise ValueError(f"{context.columns} columns need as many placeholders, and a question behind them")
        if request.cache_salt is None or not request.cache_salt.startswith(context.salt):
            raise ValueError("its cache salt is not that of its memories")
    except Exception as error:  # noqa: BLE001 - a client's own words: whatever is wrong with them fails this request alone
        _log.warning("the packed context of request %s can't be used: %s", request.request_id, error)
        return None
    return context


def _attention_layers(layers: dict[str, Any], count: int) -> list[tuple[int, Any]]:
    """The attention layers of this worker with their numbers. Raises RuntimeError when they can't be told."""
    found: dict[int, Any] = {}
    for name, layer in layers.items():
        number = _LAYER.search(name)
        if number is None or not hasattr(getattr(layer, "impl", None), "do_kv_cache_update"):
            continue
        if int(number[1]) in found or int(number[1]) >= count:
            raise RuntimeError(f"attention layer {name} is not one of the LLM's {count}")
        found[int(number[1])] = layer
    if not found:
        raise RuntimeError("this attention backend has no cache update of its own")
    return sorted(found.items())


def _own_heads(layer: Any, heads: int) -> slice:
    """The key/value heads of this worker's share in tensor parallelism."""
    own = int(layer.num_kv_heads)
    if own == heads:
        return slice(0, heads)
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    start = rank * own if own * size == heads else rank * heads // size  # more workers than heads: some have the same
    return slice(start, start + own)
