"""The hook of vLLM's model runner V2, which its GPU backends have by default; see spelling.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from cmt_core.vllm_engine.spelling import Spelled, text_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

__all__ = ["SpellingProcessorV2"]


class SpellingProcessorV2(LogitsProcessor):  # type: ignore[misc]
    """Requests are known by their slots; what is written of them stands on the device. Without speculative decoding, so that
    each request has one row of logits.
    """

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        super().__init__(vllm_config, req_states)
        self._text, self._states = text_of(vllm_config), req_states
        self._spelled: dict[int, Spelled] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for a request whose texts are none."""
        Spelled.of(sampling_params, lambda ids: "")

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whether the request in this slot, which may have been another's, is spelled."""
        self._spelled.pop(req_idx, None)
        if (spelled := Spelled.of(sampling_params, self._text)) is not None:
            self._spelled[req_idx] = spelled
        return spelled is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """The scores (rows, V), changed in place where a row's request is spelled."""
        rows = [(row, slot) for row, slot in enumerate(ctx.idx_mapping_np.tolist()) if slot in self._spelled]
        if rows:
            for (row, slot), written in zip(rows, self._written([slot for _, slot in rows]), strict=True):
                logits[row] = self._spelled[slot].kept(written, logits[row])
        return logits

    def _written(self, slots: list[int]) -> list[list[int]]:
        """The tokens behind each request's prompt, in two copies from the device for all of them."""
        states = self._states
        starts = [int(states.prompt_len.np[slot]) for slot in slots]
        at = torch.tensor(slots, device=states.device)
        sizes = [total - start for total, start in zip(states.total_len.gpu[at].tolist(), starts, strict=True)]
        longest = max(0, *sizes)
        places = torch.tensor(starts, device=states.device)[:, None] + torch.arange(longest, device=states.device)
        every = states.all_token_ids.gpu
        ids = every[at[:, None], places.clamp_max(every.shape[1] - 1)].tolist()
        return [own[: max(0, size)] for own, size in zip(ids, sizes, strict=True)]
