"""The retrieval key: a small frozen sentence encoder whose cosine finds the memories that a question needs.

It is used as its own files say (sentence_layout.py): pooling, dense layers, what stands before a query or a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cmt_core.errors import ModelSourceError, one_line
from cmt_core.llm.backbone import pick_dtype
from cmt_core.llm.control_tokens import SafeTokenizer
from cmt_core.llm.loading import loading_alone
from cmt_core.retrieval.sentence_layout import pooled, read_dense, read_layout

__all__ = ["Retriever"]

_BUCKET_TOKENS = 32  # lengths are padded to whole buckets: every new shape costs the CPU kernels a re-tuning


class Retriever:
    """Normalised sentence embeddings (Reimers and Gurevych 2019) of documents and of queries.

    Texts are normalised, and names of control tokens in them are the tokens of their letters.
    """

    def __init__(self, folder: Path, device: torch.device, batch: int = 32) -> None:
        """Raises ModelSourceError, and UnsupportedModelError for a tokenizer or a part that can't be used."""
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            with loading_alone():
                self._model = AutoModel.from_pretrained(folder, dtype=pick_dtype(device))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelSourceError(f"retriever {folder} can't be loaded: {one_line(error)}") from None
        self._model = self._model.to(device).eval().requires_grad_(False)
        self._device = device
        self.layout = read_layout(folder)
        self._dense = [layer.to(device) for layer in read_dense(folder, self.layout)]
        self._tokenizer = SafeTokenizer(tokenizer, self.layout.max_tokens)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._batch = batch
        hidden = int(self._model.config.hidden_size) * len(self.layout.pooling)
        full = len(next(self._dense[-1].parameters())) if self._dense else hidden
        self.d_key: int = min(full, self.layout.width or full)

    def keys(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Unit vectors (N, d_key) of documents' texts, in their order."""
        return self._keys([self.layout.document_prompt + text for text in texts])

    def query_keys(self, questions: Sequence[str]) -> NDArray[np.float16]:
        """Unit vectors (N, d_key) of questions, in their order."""
        return self._keys([self.layout.query_prompt + question for question in questions])

    @torch.inference_mode()
    def _keys(self, texts: Sequence[str]) -> NDArray[np.float16]:
        out = np.zeros((len(texts), self.d_key), dtype=np.float16)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            out[rows] = self._encode([texts[i] for i in rows])
        return out

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The encoder's tokens of each text, with those that stand around it."""
        return self._tokenizer.batch(list(texts))

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> list[Tensor]:
        """The last hidden states (n, D) of each text's tokens, which pooling makes a key of; fp32, read in one batch."""
        hidden, attended = self._read(self.token_ids(texts))
        return [own[: int(many)].cpu() for own, many in zip(hidden, attended.sum(dim=1), strict=True)]

    def _encode(self, texts: list[str]) -> NDArray[np.float16]:
        hidden, attended = self._read(self.token_ids(texts))
        vectors = pooled(hidden, attended, self.layout.pooling)
        for layer in self._dense:
            vectors = layer(vectors)
        unit = torch.nn.functional.normalize(vectors[:, : self.d_key], dim=-1).cpu().numpy()
        return np.asarray(unit, dtype=np.float16)

    def _read(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, T, D) in fp32 of rows of token ids, and which of them are tokens (N, T)."""
        T = -(-max(map(len, rows)) // _BUCKET_TOKENS) * _BUCKET_TOKENS
        ids = torch.tensor([row + [self._pad_id] * (T - len(row)) for row in rows], device=self._device)
        attended = torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in rows], device=self._device)
        return self._model(input_ids=ids, attention_mask=attended).last_hidden_state.float(), attended
