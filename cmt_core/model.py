"""The whole of CMT for serving: documents in, packed memories out; questions and memories in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cmt_core.checkpoint import Checkpoint, checkpoint_folder
from cmt_core.errors import CheckpointError
from cmt_core.fitting.auto import auto_checkpoint
from cmt_core.fitting.fit_config import DEFAULT_FIT, FitConfig, Progress
from cmt_core.fitting.known import note_checkpoint
from cmt_core.generation.answering import AnswerBatch
from cmt_core.generation.asking import QuestionBatch, log_loss
from cmt_core.generation.candidates import generate_likeliest
from cmt_core.generation.greedy import GeneratedTokens
from cmt_core.generation.spelling import Speller
from cmt_core.llm.backbone import Backbone, pick_device
from cmt_core.llm.model_source import file_sha256, resolve_model
from cmt_core.llm.tokens import Tokens, bucket
from cmt_core.memory.decoded import DecodedMemories
from cmt_core.memory.format import Memory
from cmt_core.reading.batch import Reading
from cmt_core.reading.contexts import Contexts
from cmt_core.reading.prompting_choice import prompting_of
from cmt_core.retrieval.late_interaction import DocumentKeys, QueryKeys
from cmt_core.retrieval.looks import Look, looked_at
from cmt_core.retrieval.retriever import Retriever
from cmt_core.retrieval.sentence_layout import read_layout
from cmt_core.shipped import CACHE_DIR, LLM, RETRIEVER
from cmt_core.text.windows import Window, split_document

__all__ = ["CMT", "Answer", "Memory", "retriever_fingerprint"]

_DECODED_BYTES = 256 * 2**20  # of memories read lately, ready as keys and values
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 32768}  # tokens read at once: enough to fill the device, small enough to fit


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer; `weights` is each memory's share of the LLM's attention to memories (sums to 1).

    `together` are the memories that the question takes together, in their order; empty where it takes no two.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    weights: list[float]
    together: tuple[int, ...] = ()


class CMT:
    """Compressor Θ, alignment π and the frozen LLM Φ with one checkpoint; not thread-safe."""

    def __init__(self, backbone: Backbone, checkpoint: Checkpoint, retriever: Retriever, model_id: str) -> None:
        device, dtype = backbone.device, backbone.dtype
        self.backbone, self.retriever, self.model_id = backbone, retriever, model_id
        self.config = checkpoint.config
        self.tokens = Tokens(backbone)
        self.prompting = prompting_of(self.config, backbone.model.generation_config, self.tokens)
        self.format = checkpoint.format(backbone)
        self.select = checkpoint.select.to(device) if checkpoint.select else None
        self.soft = checkpoint.soft.to(device) if checkpoint.soft else None
        self.look_head = checkpoint.look_head
        self.encoding_prefix = checkpoint.encoding_prefix.to(device, dtype)
        self.reading_prefix = checkpoint.reading_prefix.to(device, dtype)
        self.d_key = retriever.d_key
        self.memory_bytes = self.config.memory_bytes
        self.default_top_k = self.config.top_k
        self.min_score = self.config.min_score
        self.answer_tokens = self.prompting.answer_tokens
        self.follows_instructions = self.config.reading == "chat"
        self.decoded = DecodedMemories(_DECODED_BYTES, self.config.window_tokens)

    @classmethod
    def load(
        cls,
        llm: str = LLM,
        checkpoint: str = "auto",
        retriever: str = RETRIEVER,
        cache_dir: Path = CACHE_DIR,
        device: str = "auto",
        report: Callable[[str], None] = lambda line: None,
        progress: Progress = lambda stage, done, total: None,
        fit: FitConfig = DEFAULT_FIT,
    ) -> CMT:
        """Loads all parts; checkpoint `auto` is the shipped one for its own LLM, else one fitted once as `fit` says.

        Raises ModelSourceError, UnsupportedModelError, or CheckpointError when they don't belong together.
        """
        named = None if checkpoint == "auto" else checkpoint_folder(checkpoint)
        if named is not None:
            Checkpoint.load(named)  # what is wrong with it is told before anything slow
        cache = cache_dir.expanduser()
        llm_folder, retriever_folder = resolve_model(llm, cache, report), resolve_model(retriever, cache, report)
        target = pick_device(device)
        backbone = Backbone.load(llm_folder, target)
        fingerprint, encoder_fingerprint = (
            backbone.fingerprint(torch.bfloat16),
            retriever_fingerprint(retriever_folder),
        )
        encoder = Retriever(retriever_folder, target)
        folder = named or auto_checkpoint(
            backbone,
            fingerprint,
            encoder,
            encoder_fingerprint,
            cache,
            llm=llm,
            retriever_name=retriever,
            config=fit,
            progress=progress,
            report=report,
        )
        if named is None:
            note_checkpoint(cache, llm_folder, retriever_folder, fit, folder)
        parts = Checkpoint.load(folder)
        if fingerprint != parts.llm_fingerprint:
            raise CheckpointError(
                f"checkpoint {checkpoint} was trained for another LLM (weights {parts.llm_fingerprint[:12]}) "
                f"than {llm} ({fingerprint[:12]}): checkpoint auto finds or fits one for this LLM"
            )
        model_id = Checkpoint.model_id(folder, fingerprint, encoder_fingerprint)
        return cls(backbone, parts, encoder, model_id)

    def windows(self, title: str, text: str) -> list[Window]:
        """A document's windows, none for a text without words."""
        return split_document(title, text, self.config.window_tokens, lambda part: len(self.tokens.ids(part)))

    def document_keys(self, windows: Sequence[Window]) -> DocumentKeys:
        """What N windows are found by."""
        return self.retriever.document_keys([window.reading for window in windows])

    def query_keys(self, questions: Sequence[str]) -> QueryKeys:
        """What B questions look for."""
        return self.retriever.query_keys(questions)

    @torch.inference_mode()
    def compress(self, windows: Sequence[Window]) -> list[Memory]:
        """Memories of windows, in their order; read in batches of like length within the device's token budget."""
        ids = [self.prompting.document(window.reading, self.config.window_tokens) for window in windows]
        memories: dict[int, Memory] = {}
        for rows in self._batches([len(row) for row in ids]):
            batch, mask = self.tokens.padded([ids[row] for row in rows])
            memories.update(zip(rows, self.format.write(batch, mask, self.encoding_prefix), strict=True))
        return [memories[row] for row in range(len(windows))]

    def vectors_of(self, memory: Memory) -> int:
        """How many vectors a memory holds: one a token, or those of `soft_tokens`, whatever the window's length."""
        return self.config.memory_vectors if self.soft is not None else memory.n_tokens

    @torch.inference_mode()
    def answer(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        *,
        max_new_tokens: int,
        scores: Sequence[Sequence[float]] | None = None,
        sources: Sequence[Sequence[str]] = (),
        candidates: int = 1,
    ) -> list[Answer]:
        """Answers B questions, each from its own packed memories (at least one); no text is read.

        `scores` are the retriever's of each memory; without them ψ `select` starts from their order. The LLM's own logits are
        mixed in as the checkpoint's objective says; `sources` and `candidates` are as in `write`. Raises MemoryFormatError for
        bytes of another layout.
        """
        return self.write(self.ask(questions, memories, scores), max_new_tokens, sources, candidates)

    @torch.inference_mode()
    def answer_rag(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> list[Answer]:
        """The RAG baseline: the same LLM with the passages' text in the prompt, behind the prefix that was tuned on text."""
        return self.write(self.ask_of_text(questions, passages), max_new_tokens)

    @torch.inference_mode()
    def answer_closed(self, questions: Sequence[str], *, max_new_tokens: int) -> list[Answer]:
        """The LLM by itself, through its own chat template."""
        return self.write(self.ask_closed(questions), max_new_tokens)

    def answer_batch(self) -> AnswerBatch:
        """A running batch, for answers that join and leave while others are being written."""
        return AnswerBatch(self._contexts)

    @torch.inference_mode()
    def answer_bare(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], *, max_new_tokens: int
    ) -> list[Answer]:
        """The plain RAG baseline: the LLM by itself with the passages' text in its own chat template, and no learned prefix."""
        return self.write(self.ask_bare(questions, passages), max_new_tokens)

    def ask(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None = None,
        instructions: str = "",
        completed_by: Sequence[Sequence[int | None]] | None = None,
    ) -> QuestionBatch:
        """What `answer` asks with, to be answered by `write` and judged by `log_loss`.

        `instructions` are a system message, which reading `chat` follows as the LLM does; `completed_by` as in `context`.
        """
        reading, weight = self.context(questions, memories, scores, completed_by), self.config.decoding_weight
        plain = self.context_of_nothing(len(questions), prefixed=True).context if weight != 1 else None
        return QuestionBatch(reading, self._prompts(questions, instructions), plain=plain, weight=weight)

    def ask_of_text(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], instructions: str = ""
    ) -> QuestionBatch:
        """What `answer_rag` asks with."""
        return QuestionBatch(self.context_of_text(passages), self._prompts(questions, instructions), texts=passages)

    def ask_bare(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]], instructions: str = ""
    ) -> QuestionBatch:
        """What `answer_bare` asks with."""
        asked = ["\n\n".join([*texts, question]) for question, texts in zip(questions, passages, strict=True)]
        return self.ask_closed(asked, instructions=instructions)

    def ask_closed(self, questions: Sequence[str], *, prefixed: bool = False, instructions: str = "") -> QuestionBatch:
        """What `answer_closed` asks with, or (`prefixed`) the questions behind the reading prefix, without any memory."""
        if prefixed:
            return QuestionBatch(
                self.context_of_nothing(len(questions), prefixed=True), self._prompts(questions, instructions)
            )
        prompts = [self.prompting.closed(question, (), instructions) for question in questions]
        return QuestionBatch(self.context_of_nothing(len(prompts)), prompts, closed=True)

    @torch.inference_mode()
    def write(
        self, asked: QuestionBatch, max_new_tokens: int, sources: Sequence[Sequence[str]] = (), candidates: int = 1
    ) -> list[Answer]:
        """The answers to what was asked, greedy.

        A checkpoint that answers in a few words spells them from those of each question's `sources` that are read, where these
        are given, and takes the likeliest of up to so many `candidates` that begin with other likely tokens.
        """
        reading, prompts, stops = asked.reading, asked.prompts, asked.reading.stop_ids
        in_words = not self.follows_instructions and not asked.closed
        spellers = [
            Speller(asked.texts[row] if asked.texts else reading.texts_read(row, texts), self.tokens.text, stops)
            if texts
            else None
            for row, texts in enumerate(sources if in_words else ())
        ]
        made = generate_likeliest(
            self.backbone,
            reading.context,
            prompts,
            max_new_tokens,
            stops,
            spellers,
            asked.plain,
            asked.weight,
            candidates if in_words else 1,
        )
        return [self._to_answer(one, reading, row, prompts[row]) for row, one in enumerate(made)]

    def log_loss(self, asked: QuestionBatch, answers: Sequence[str]) -> list[float]:
        """Nats per token that the LLM loses on each given answer and its end, before or instead of `write`."""
        return log_loss(self.backbone, self.prompting, asked, answers)

    @torch.inference_mode()
    def context(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None = None,
        completed_by: Sequence[Sequence[int | None]] | None = None,
    ) -> Reading:
        """What the LLM reads of B questions' packed memories (at least one each).

        `scores` are the retriever's of each memory, for ψ `select`; without them the best memory should come first.
        `completed_by` (`retrieval.complement.completed_by` of their texts) lets it read two that a question needs together.
        Raises MemoryFormatError for bytes of another layout, ValueError for other than one score a memory.
        """
        return self._contexts.of_memories(questions, memories, scores, completed_by)

    @torch.inference_mode()
    def likely(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]],
        completed_by: Sequence[Sequence[int | None]] | None = None,
    ) -> list[list[int]]:
        """The places of each question's memories that are likely its documents, in the order in which `select` reads them."""
        return self._contexts.likely(questions, memories, scores, completed_by)

    def looked_at(self, k: int) -> int:
        """How many documents are to be found where k are to be read: more where a learned look tells them apart."""
        return k if self.look_head is None or self.select is None else looked_at(k)

    @torch.inference_mode()
    def looks(self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], layer: int) -> list[Look]:
        """What the LLM makes of N questions, each behind memories of its own; `layer` gives the states."""
        return self._contexts.looks(questions, memories, layer)

    @torch.inference_mode()
    def context_of_text(self, passages: Sequence[Sequence[str]]) -> Reading:
        """The exact keys and values of B questions' passages (at least one each), which the LLM reads now."""
        return self._contexts.of_text(passages)

    @torch.inference_mode()
    def context_of_nothing(self, rows: int, *, prefixed: bool = False) -> Reading:
        """No document at all: for the LLM by itself, or (`prefixed`) behind the reading prefix, as a memory would be read."""
        return self._contexts.of_nothing(rows, prefixed)

    @property
    def _contexts(self) -> Contexts:
        return Contexts(
            self.backbone, self.tokens, self.prompting, self.config, self.format, self.select, self.soft, self.encoding_prefix,
            self.reading_prefix, self.decoded, self.look_head,
        )  # fmt: skip

    def _prompts(self, questions: Sequence[str], instructions: str) -> list[list[int]]:
        return [self.prompting.question(question, (), instructions) for question in questions]

    def _to_answer(self, made: GeneratedTokens, reading: Reading, row: int, prompt: Sequence[int]) -> Answer:
        text, read = self.tokens.text(made.ids).strip(), reading.prompt_tokens(row, prompt)
        weights = reading.weights(row, made.attention)
        return Answer(text, read, len(made.ids), made.finish_reason, weights, reading.two(row))

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Row numbers in batches of like length, at most the token budget each."""
        budget = _TOKEN_BUDGET.get(self.backbone.device.type, 2048)
        batches: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            if not batches or (len(batches[-1]) + 1) * bucket(lengths[row]) > budget:
                batches.append([])
            batches[-1].append(row)
        return batches


def retriever_fingerprint(folder: Path) -> str:
    """Names a retriever by its weights and by how it is used."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return "".join(file_sha256(path) for path in weights) + read_layout(folder).suffix
