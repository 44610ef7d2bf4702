"""CMT without its LLM: retrieval keys, prompts and ψ's choice, for an engine behind the seam (cmt_core/generation/engine.py).

Of ψ `select` two things need the LLM. Its looks (how likely the question is behind each memory) are asked of the engine. The
attention that picks blocks, where the documents that are left hold more tokens than a context, is not: they are taken from their
starts, the likeliest document first (decision 0161 has what that costs).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmt_core.checkpoint import Checkpoint, checkpoint_folder
from cmt_core.config import MemoryConfig
from cmt_core.errors import CheckpointError, ConfigError, MemoryFormatError
from cmt_core.fitting.fit_config import DEFAULT_FIT, FitConfig
from cmt_core.fitting.known import known_checkpoint
from cmt_core.generation.engine import Look, PackedRequest, StreamEngine
from cmt_core.generation.prompts import QueryPrompts
from cmt_core.generation.query import Query
from cmt_core.llm.folder import LLMFolder, folder_fingerprint
from cmt_core.llm.model_source import resolve_model
from cmt_core.llm.tokens import Tokens
from cmt_core.memory.packed_context import NOTHING
from cmt_core.model import CMT, retriever_fingerprint
from cmt_core.reading.aggregation import Select, joined, rectangle, start_of_prior, to_join, with_looks
from cmt_core.reading.packing import Chosen, chosen_of, prefix_alone, stacked, texts_read
from cmt_core.reading.prompting_choice import prompting_of
from cmt_core.retrieval.late_interaction import QueryKeys
from cmt_core.retrieval.query_likelihood import told_tokens
from cmt_core.retrieval.retriever import Retriever
from cmt_core.shipped import CACHE_DIR, LLM, RETRIEVER, SHIPPED

__all__ = ["PackedModel", "Prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A query as the engine gets it, the tokens that its answer was asked with, each memory's share of the prior, and which
    memories the question takes `together`.
    """

    request: PackedRequest
    prompt_tokens: int
    weights: list[float]
    together: tuple[int, ...] = ()


class PackedModel:
    """One checkpoint's side of the seam; not thread-safe but for `query_keys`."""

    def __init__(
        self, llm: LLMFolder, checkpoint: Checkpoint, folder: Path, retriever: Retriever, model_id: str
    ) -> None:
        """Raises ConfigError for a checkpoint that can't be read so."""
        config = checkpoint.config
        _check(config, llm)
        self.llm, self.config, self.retriever, self.model_id = llm, config, retriever, model_id
        self.checkpoint_folder = folder
        self.bits_per_token: int | None = None
        self.tokens = Tokens(llm)
        self.prompting = prompting_of(config, llm.generation, self.tokens)
        self.prompts = QueryPrompts(self.tokens.ids, self.prompting, config)
        self.d_key = retriever.d_key
        self.memory_bytes = config.memory_bytes
        self.default_top_k = config.top_k
        self.min_score = config.min_score
        self.answer_tokens = self.prompting.answer_tokens
        self.follows_instructions = config.reading == "chat"
        self._select = checkpoint.select
        self._prefix_tokens = {
            "reading": len(checkpoint.reading_prefix),
            "encoding": len(checkpoint.encoding_prefix),
        }

    @classmethod
    def load(
        cls,
        llm: str = LLM,
        checkpoint: str = "auto",
        retriever: str = RETRIEVER,
        cache_dir: Path = CACHE_DIR,
        report: Callable[[str], None] = lambda line: None,
        fit: FitConfig = DEFAULT_FIT,
    ) -> PackedModel:
        """As `CMT.load`, whose `model_id` it has: banks of the one are read by the other. Raises ConfigError, too."""
        named = None if checkpoint == "auto" else checkpoint_folder(checkpoint)
        cache = cache_dir.expanduser()
        llm_folder, retriever_folder = resolve_model(llm, cache, report), resolve_model(retriever, cache, report)
        fingerprint = folder_fingerprint(llm_folder)
        if named is None and Checkpoint.load(SHIPPED).llm_fingerprint == fingerprint:
            named = SHIPPED
        folder = named or known_checkpoint(cache, llm_folder, retriever_folder, fit)
        if folder is None:  # it is fitted, which needs the LLM itself for a while
            CMT.load(llm, checkpoint, retriever, cache, report=report, fit=fit)
            folder = known_checkpoint(cache, llm_folder, retriever_folder, fit)
        if folder is None:
            raise CheckpointError(
                f"the checkpoint fitted to {llm} is not to be found: name its folder (model.checkpoint)"
            )
        parts = Checkpoint.load(folder)
        if fingerprint != parts.llm_fingerprint:
            raise CheckpointError(
                f"checkpoint {checkpoint} was trained for another LLM (weights {parts.llm_fingerprint[:12]}) "
                f"than {llm} ({fingerprint[:12]}): checkpoint auto finds or fits one for this LLM"
            )
        model_id = Checkpoint.model_id(folder, fingerprint, retriever_fingerprint(retriever_folder))
        encoder = Retriever(retriever_folder, torch.device("cpu"))
        return cls(LLMFolder.load(llm_folder), parts, folder, encoder, model_id)

    def with_bits(self, bits: int) -> PackedModel:
        """The same checkpoint reading memories of `bits` bits a token, as `cmt_core.evaluation.rounding.with_bits`."""
        if bits == self.config.bits_per_token:
            return self
        self.config = dataclasses.replace(self.config, bits_per_token=bits)
        self.prompts = QueryPrompts(self.tokens.ids, self.prompting, self.config)
        self.memory_bytes, self.bits_per_token = self.config.memory_bytes, bits
        self.model_id = f"{self.model_id}-{bits}"
        return self

    def query_keys(self, questions: Sequence[str]) -> QueryKeys:
        """What B questions look for."""
        return self.retriever.query_keys(questions)

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, as far as they go."""
        return self.tokens.text(ids)

    def most_columns(self, top_k: int) -> int:
        """The longest context of `top_k` memories."""
        kept = self.config.context_vectors if self._select is not None else top_k * self.config.window_tokens
        return max(self._prefix_tokens.values()) + max(kept, self.config.window_tokens)

    async def prepare(self, query: Query, max_new_tokens: int, engine: StreamEngine) -> Prepared:
        """What the engine is asked. Raises MemoryFormatError for foreign memories, ValueError for a query that can't be."""
        if self.prompts.weight(query) != 1.0:
            raise ValueError(
                "memory_weight must be 1 with serve.engine vllm: mixing needs the scores of two prompts at every token"
            )
        prompt, stop_ids = self.prompts.prompt(query), frozenset(self.prompts.stop_ids(query))
        prompt_tokens = self.prompts.tokens(query)
        if query.mode == "closed":
            return Prepared(
                PackedRequest(NOTHING, tuple(prompt), max_new_tokens, stop_ids, query.sampling), prompt_tokens, []
            )
        spelled_from = query.spelled_from
        if query.mode == "rag":
            prompt = [*self.prompts.texts(query), *prompt]
            context = prefix_alone("encoding", self._prefix_tokens["encoding"])
            weights = [1 / max(1, len(query.passages))] * len(query.passages)
            together: tuple[int, ...] = ()
        else:
            chosen = await self._chosen(query, engine)
            context, weights, together = chosen.context, list(chosen.shares), chosen.together
            if spelled_from:
                spelled_from = [*texts_read(spelled_from, chosen.owners, chosen.size), *query.passages]
        request = PackedRequest(context, tuple(prompt), max_new_tokens, stop_ids, query.sampling, tuple(spelled_from))
        return Prepared(request, prompt_tokens, weights, together)

    async def _chosen(self, query: Query, engine: StreamEngine) -> Chosen:
        """Which tokens of a query's memories are read."""
        if not query.memories:
            raise MemoryFormatError("a question without memories has nothing to read; ask it with mode closed")
        if query.scores is not None and len(query.scores) != len(query.memories):
            raise ValueError(f"{len(query.scores)} scores for {len(query.memories)} memories")
        if self._select is None:
            return self._stacked(query.memories)
        weight = self.config.likelihood_weight
        scores = None if query.scores is None else [query.scores]
        start, pairs = start_of_prior([len(query.memories)], scores, self.config.prior_temperature, weight > 0)
        nats = await self._likelihoods(query, [[i] for _, i in pairs], engine)
        prior = with_looks(start, pairs, nats, weight)
        two = to_join(prior, [query.completed_by] if query.completed_by else None)
        looks = await self._likelihoods(
            query, [read for _, other, first in two for read in ([other, first], [first])], engine
        )
        prior, together = joined(prior, two, [looks[0] - looks[1]] if two else [])
        return self._selected(self._select, query.memories, prior[0], together[0])

    async def _likelihoods(self, query: Query, read: Sequence[Sequence[int]], engine: StreamEngine) -> list[float]:
        """Log-probability in nats of the question behind each of some lists of its memories."""
        if not read:
            return []
        head, words = told_tokens(*self.prompting.for_likelihood(query.question))
        contexts = [self._stacked([query.memories[i] for i in own]).context for own in read]
        return await engine.log_likelihoods([Look(context, tuple(head), tuple(words)) for context in contexts])

    def _stacked(self, memories: Sequence[bytes]) -> Chosen:
        return stacked(self.config, self.prompting.fixed_slots, self._prefix_tokens["reading"], memories)

    def _selected(
        self, select: Select, memories: Sequence[bytes], prior: torch.Tensor, together: tuple[int, ...]
    ) -> Chosen:
        kept = [i for i, value in enumerate(prior.tolist()) if value > -math.inf]
        sizes = torch.tensor([self.config.tokens_of(memories[i]) for i in kept])
        T = int(sizes.max())
        mask = (torch.arange(T) < sizes[:, None]).long()[None]  # (1, k, T)
        even = mask / sizes[None, :, None]
        choice = select.choose(even, rectangle([prior[kept].tolist()], -math.inf), mask)
        columns = choice.index[0, choice.seen[0]].tolist()
        length = int(choice.length[0]) if self.prompting.fixed_slots else len(columns)
        places = [(kept[column // T], column % T) for column in columns]
        shares = prior.softmax(dim=-1).tolist()
        return chosen_of(self._prefix_tokens["reading"], memories, places, length, shares, together)


def _check(config: MemoryConfig, llm: LLMFolder) -> None:
    if config.method != "kv_code":
        raise ConfigError(
            f"serve.engine vllm reads memories of kv_code, not of {config.method}: use engine transformers"
        )
    if config.decoding_weight != 1.0:
        raise ConfigError(
            f"serve.engine vllm can't mix scores as this checkpoint's objective {config.objective} does: use engine transformers"
        )
    text: Any = llm.config.get_text_config()
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True) is not False
    if config.reading == "prefix" and windowed:
        raise ConfigError(
            "serve.engine vllm counts a sliding window in tokens, and this checkpoint leaves gaps between positions: fit one "
            "(model.checkpoint auto)"
        )
