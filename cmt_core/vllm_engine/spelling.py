"""Answers spelled from their sources' texts under vLLM, by its own hook for logits, which runs in its workers.

A request's texts travel in its `extra_args`; the LLM does not read them (cmt_core/generation/spelling.py). This is the hook of
vLLM's model runner V1; that of V2 is in spelling_v2.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from cmt_core.generation.spelling import CANDIDATES, Speller
from cmt_core.llm.folder import LLMFolder
from cmt_core.llm.tokens import Tokens
from cmt_core.vllm_engine.placeholders import SPELLED_KEY

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

__all__ = ["Spelled", "SpellingProcessor", "text_of"]

_Text = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Spelled:
    """One answer's speller, and whether its tokens are drawn."""

    speller: Speller
    drawn: bool

    @classmethod
    def of(cls, params: SamplingParams, text: _Text) -> Spelled | None:
        """None for a request without texts. Raises ValueError for what are no texts."""
        texts = (params.extra_args or {}).get(SPELLED_KEY)
        if not texts:
            return None
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"{SPELLED_KEY} has to be a list of texts")
        return cls(Speller(texts, text, frozenset(params.stop_token_ids or ())), params.temperature > 0)

    def kept(self, written: Sequence[int], logits: Tensor) -> Tensor:
        """The scores (V,) of the next token with -inf for those that must not be taken, behind what is written."""
        likely: list[int] = logits.topk(min(CANDIDATES, len(logits))).indices.tolist()
        fits = self.speller.fitting(written, likely)
        allowed = list(fits if self.drawn else itertools.islice(fits, 1))
        if not allowed:
            return logits
        only = torch.full_like(logits, -torch.inf)
        only[allowed] = logits[allowed]
        return only


def text_of(config: VllmConfig) -> _Text:
    """The text of tokens of the LLM that a worker runs."""
    return Tokens(LLMFolder.load(Path(config.model_config.model))).text


class SpellingProcessor(AdapterLogitsProcessor):  # type: ignore[misc]
    """vLLM makes one of it in each worker; see the module."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._text = text_of(vllm_config)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for a request whose texts are none."""
        Spelled.of(sampling_params, lambda ids: "")

    def is_argmax_invariant(self) -> bool:
        """It is there to change which token is the best."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[[list[int], Tensor], Tensor] | None:
        """What vLLM calls with each of a request's steps; None for one that is free."""
        spelled = Spelled.of(params, self._text)
        return None if spelled is None else spelled.kept
