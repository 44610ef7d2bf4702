"""The retrieval key: a small frozen sentence encoder whose cosine finds the memories that a question needs.

It is used as its own files say (sentence_layout.py): pooling, dense layers, what stands before a query or a document.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
from cmt_core.retrieval.late_interaction import KEPT_NUMBERS, DocumentKeys, QueryKeys, pack_tokens
from cmt_core.retrieval.sentence_layout import pooled, read_dense, read_layout
from cmt_core.text.windows import sentences

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

    def document_keys(self, texts: Sequence[str]) -> DocumentKeys:
        """What documents' texts are found by, in their order."""
        prompt = self.layout.document_prompt
        before = len(self._tokenizer.ids(prompt)) if prompt else 0
        vectors = np.zeros((len(texts), self.d_key), dtype=np.float16)
        tokens = [b""] * len(texts)
        for rows, ids, hidden, keys in self._read_all([prompt + text for text in texts]):
            vectors[rows] = keys
            signs = (hidden[..., :KEPT_NUMBERS] > 0).cpu().numpy()
            for row, own, states in zip(rows, ids, signs, strict=True):
                first = next((place for place, id in enumerate(own) if not self._tokenizer.is_control(id)), 0)
                starts = [first + before + start for start in self._sentence_starts(texts[row])]
                tokens[row] = pack_tokens(states[: len(own)], starts)
        return DocumentKeys(vectors, tokens)

    def query_keys(self, questions: Sequence[str]) -> QueryKeys:
        """What questions look for, in their order; without the tokens around them."""
        vectors = np.zeros((len(questions), self.d_key), dtype=np.float16)
        tokens = [np.zeros((0, 0), dtype=np.float32)] * len(questions)
        for rows, ids, hidden, keys in self._read_all([self.layout.query_prompt + question for question in questions]):
            vectors[rows] = keys
            for row, own, states in zip(rows, ids, hidden.cpu().numpy(), strict=True):
                tokens[row] = states[[place for place, id in enumerate(own) if not self._tokenizer.is_control(id)]]
        return QueryKeys(vectors, tokens)

    def _sentence_starts(self, text: str) -> list[int]:
        """Where a text's sentences start among its tokens."""
        lengths = [len(self._tokenizer.ids(sentence)) for sentence in sentences(text)]
        return list(itertools.accumulate(lengths[:-1], initial=0))

    @torch.inference_mode()
    def _read_all(
        self, texts: Sequence[str]
    ) -> Iterator[tuple[list[int], list[list[int]], Tensor, NDArray[np.float16]]]:
        """Batches of texts of like length: which they are, their token ids, hidden states (B, T, D) and keys (B, d_key)."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            ids = self._tokenizer.batch([texts[i] for i in rows])
            hidden, attended = self._read(ids)
            yield rows, ids, hidden, self._pooled(hidden, attended)

    def _pooled(self, hidden: Tensor, attended: Tensor) -> NDArray[np.float16]:
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
