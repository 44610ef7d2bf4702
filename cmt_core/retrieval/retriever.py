"""The retrieval key: a small frozen sentence encoder whose cosine finds the memories that a question needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cmt_core.errors import ModelSourceError, one_line
from cmt_core.llm.backbone import pick_dtype
from cmt_core.llm.control_tokens import SafeTokenizer

__all__ = ["Retriever"]

_BUCKET_TOKENS = 32  # lengths are padded to whole buckets: every new shape costs the CPU kernels a re-tuning


class Retriever:
    """Mean-pooled, normalised sentence embeddings (Reimers and Gurevych 2019), 256 tokens at most.

    Texts are normalised, and names of control tokens in them are the tokens of their letters.
    """

    def __init__(self, folder: Path, device: torch.device, max_tokens: int = 256, batch: int = 32) -> None:
        """Raises ModelSourceError, and UnsupportedModelError for a tokenizer that is not of the `tokenizers` library."""
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder, dtype=pick_dtype(device))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelSourceError(f"retriever {folder} can't be loaded: {one_line(error)}") from None
        self._model = self._model.to(device).eval().requires_grad_(False)
        self._device = device
        self._tokenizer = SafeTokenizer(tokenizer, max_tokens)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._batch = batch
        self.d_key: int = self._model.config.hidden_size

    @torch.inference_mode()
    def keys(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Unit vectors (N, d_key) of texts, in their order."""
        out = np.zeros((len(texts), self.d_key), dtype=np.float16)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            out[rows] = self._encode([texts[i] for i in rows])
        return out

    def _encode(self, texts: list[str]) -> NDArray[np.float16]:
        rows = self._tokenizer.batch(texts)
        T = -(-max(map(len, rows)) // _BUCKET_TOKENS) * _BUCKET_TOKENS
        ids = torch.tensor([row + [self._pad_id] * (T - len(row)) for row in rows], device=self._device)
        attended = torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in rows], device=self._device)
        hidden = self._model(input_ids=ids, attention_mask=attended).last_hidden_state.float()
        mask = attended[..., None].float()
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        unit: NDArray[np.float16] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy().astype(np.float16)
        return unit
